"""Heat maps: which parts of an image a network's answer depends on."""

import math
from collections.abc import Callable, Mapping

from pipeline.networks.compute import to_device
from pipeline.networks.dataset import PackedSplit

import numpy as np
import torch
from torch import Tensor, nn
from torchvision import models

HEAT_MAPS_AT_ONCE = 32  # photos

AsMaps = Callable[[Tensor], Tensor]  # from a layer's output to feature maps [N, channels, height, width]


def heat_maps(network: nn.Module, images: Tensor, targets: Tensor) -> Tensor | None:
    """Grad-CAM for a class of each image, usually the predicted one: uint8 [N, height, width], on the CPU.

    `images` are normalised, float32 [N, 3, size, size]; `targets` are the classes, int [N]. A map has the resolution of
    the network's last feature map (7 x 7 for ResNet at 224 pixels, a value per patch for ViT); 255 is the area that
    supports the class most; if no area does, all of it is 0. None for a network without such a feature map. Leaves
    `network`, which must not be folded, in eval mode.

    Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017,
    equations 1 and 2.
    """
    network.eval()
    if not (found := _last_feature_map(network, images[:1])):
        return None
    layer, as_maps = found
    features, gradients = map(as_maps, _features_and_gradients(network, layer, images, targets))
    weights = gradients.mean(dim=(2, 3), keepdim=True)
    maps = (weights * features).sum(dim=1).relu()
    maps /= maps.amax(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
    return (255 * maps).round().to(torch.uint8).cpu()


def explain(
    networks: Mapping[str, nn.Module],
    photos: Mapping[str, PackedSplit],
    rows: np.ndarray,
    targets: Mapping[str, np.ndarray],
) -> dict[str, Tensor]:
    """The content of metrics/heat_maps.safetensors: `rows`, and each network's heat maps of the photos in these rows.

    `rows` is int64 [M]. By network, `photos` are the photos as it expects them, and `targets` the classes that the maps
    are for, int [N], for all rows. A network without heat maps is left out.
    """
    tensors = {"rows": torch.from_numpy(rows)}
    for name, network in networks.items():
        packed = photos[name]
        batches = tensors["rows"].to(packed.pixels.device).split(HEAT_MAPS_AT_ONCE)
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

    Both have the shape of the output. Autograd records only what follows `layer`, so this takes little
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
def _last_feature_map(network: nn.Module, images: Tensor) -> tuple[nn.Module, AsMaps] | None:
    """The layer whose output is the network's last feature map, and how to read that output; None if there is none.

    In a transformer it is what the last attention reads: in its output only the token that is classified counts, so the
    others have no gradient.
    """
    layers: list[tuple[nn.Module, Tensor]] = []
    read_by_attention: list[Tensor] = []

    def remember(module: nn.Module, _: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim in (3, 4):
            layers.append((module, output))

    def remember_input(_: nn.Module, inputs: tuple) -> None:
        read_by_attention.append(inputs[0])

    hooks = [module.register_forward_hook(remember) for module in network.modules()]
    hooks += [
        module.register_forward_pre_hook(remember_input)
        for module in network.modules()
        if type(module).__name__.endswith("Attention")
    ]
    try:
        network(images)
    finally:
        for hook in hooks:
            hook.remove()
    as_maps = _channels_first if getattr(network, "output_fmt", "") == "NHWC" else _unchanged
    for layer, output in reversed(layers):
        if output.ndim == 3 and output.shape[1] > 1:
            return _last_tokens(network, layers, read_by_attention)
        if output.ndim == 4 and min(as_maps(output).shape[2:]) > 1:
            return layer, as_maps
    return None


def _last_tokens(
    network: nn.Module, layers: list[tuple[nn.Module, Tensor]], read_by_attention: list[Tensor]
) -> tuple[nn.Module, AsMaps] | None:
    """The layer that wrote what the last attention reads, tokens [N, tokens, channels], if they are a square grid."""
    prefix = getattr(network, "num_prefix_tokens", 1 if isinstance(network, models.VisionTransformer) else 0)
    read = read_by_attention[-1] if read_by_attention else None
    layer = next((layer for layer, output in layers if output is read), None)
    if layer is None or read is None or read.ndim != 3:
        return None
    side = math.isqrt(read.shape[1] - prefix)
    if side == 1 or side**2 != read.shape[1] - prefix:
        return None
    return layer, lambda tokens: tokens[:, prefix:].transpose(1, 2).unflatten(2, (side, side))


def _unchanged(maps: Tensor) -> Tensor:
    return maps


def _channels_first(maps: Tensor) -> Tensor:
    return maps.permute(0, 3, 1, 2)
