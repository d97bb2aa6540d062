"""Heat maps: which parts of an image a network's answer depends on."""

from collections.abc import Mapping

from pipeline.networks.compute import to_device
from pipeline.networks.dataset import PackedSplit

import numpy as np
import torch
from torch import Tensor, nn
from torchvision import models

HEAT_MAPS_AT_ONCE = 32  # photos


def heat_maps(network: nn.Module, images: Tensor, targets: Tensor) -> Tensor | None:
    """Grad-CAM for a class of each image, usually the predicted one: uint8 [N, height, width], on the CPU.

    `images` are normalised, float32 [N, 3, size, size]; `targets` are the classes, int [N]. A map has the resolution of
    the network's last feature map (7 x 7 for ResNet at 224 pixels); 255 is the area that supports the class most; if no
    area does, all of it is 0. None for a network without such a feature map (ViT). Leaves `network`, which must not be
    folded, in eval mode.

    Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017,
    equations 1 and 2.
    """
    network.eval()
    layer = _last_feature_map(network, images[:1])
    if layer is None:
        return None
    features, gradients = _features_and_gradients(network, layer, images, targets)
    weights = gradients.mean(dim=(2, 3), keepdim=True)
    maps = (weights * features).sum(dim=1).relu()
    maps /= maps.amax(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
    return (255 * maps).round().to(torch.uint8).cpu()


def explain(
    networks: Mapping[str, nn.Module], packed: PackedSplit, rows: np.ndarray, targets: Mapping[str, np.ndarray]
) -> dict[str, Tensor]:
    """The content of metrics/heat_maps.safetensors: `rows`, and each network's heat maps of the photos in these rows.

    `rows` is int64 [M]; `targets` has for each network the classes that the maps are for, int [N], for all rows. A
    network without heat maps is left out.
    """
    tensors = {"rows": torch.from_numpy(rows)}
    batches = tensors["rows"].to(packed.pixels.device).split(HEAT_MAPS_AT_ONCE)
    for name, network in networks.items():
        to_device(network, packed.device)
        classes = torch.from_numpy(targets[name])[tensors["rows"]].to(packed.device).split(HEAT_MAPS_AT_ONCE)
        maps = [heat_maps(network, packed.images(batch), of) for batch, of in zip(batches, classes, strict=True)]
        if found := [part for part in maps if part is not None]:
            tensors[name] = torch.cat(found)
        else:
            print(f"{name}: no heat maps; it has no last feature map")
    return tensors


def _features_and_gradients(
    network: nn.Module, layer: nn.Module, images: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """The output of `layer`, and the gradient of each image's target logit with respect to it.

    Both have the shape [N, channels, height, width]. Autograd records only what follows `layer`, so this takes little
    more memory than inference.
    """
    outputs = []

    def record_from_here(_: nn.Module, __: object, output: Tensor) -> Tensor:
        outputs.append(output.detach().requires_grad_())
        torch.set_grad_enabled(True)
        return outputs[-1].clone()  # the network may change its input in place

    hook = layer.register_forward_hook(record_from_here)
    try:
        with torch.no_grad():
            logits = network(images).gather(1, targets[:, None])
    finally:
        hook.remove()
    [gradients] = torch.autograd.grad(logits.sum(), outputs[-1])
    return outputs[-1].detach(), gradients


@torch.no_grad()
def _last_feature_map(network: nn.Module, images: Tensor) -> nn.Module | None:
    """The layer whose output is the network's last feature map, if it has one."""
    layers: list[nn.Module] = []

    def remember(module: nn.Module, _: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and min(output.shape[2:]) > 1:
            layers.append(module)

    hooks = [module.register_forward_hook(remember) for module in network.modules()]
    try:
        network(images)
    finally:
        for hook in hooks:
            hook.remove()
    has_maps = layers and not isinstance(
        network, models.VisionTransformer
    )  # its only 4-D output is that of the patches
    return layers[-1] if has_maps else None
