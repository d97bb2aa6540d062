"""Heat maps: which parts of an image a network's answer depends on."""

import torch
from torch import Tensor, nn
from torchvision import models


def heat_maps(network: nn.Module, images: Tensor, targets: Tensor) -> Tensor | None:
    """Grad-CAM for a class of each image, usually the predicted one: uint8 [N, height, width], on the CPU.

    `images` are normalised, float32 [N, 3, size, size]; `targets` are the classes, int [N]. A map has the resolution of
    the network's last feature map (7 x 7 for ResNet at 224 pixels); 255 is the area that supports the class most. All
    of it is 0 if no area does.
    None for a network without such a feature map (ViT). Leaves `network`, which must not be folded, in eval mode.

    Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017.
    """
    from captum.attr import LayerGradCam  # here, because it takes a second, and most callers do not need it

    network.eval()
    layer = _last_feature_map(network, images[:1])
    if layer is None:
        return None
    maps = LayerGradCam(network, layer).attribute(images, target=targets, relu_attributions=True)
    maps = maps.detach().squeeze(1).cpu()
    maps /= maps.amax(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
    return (255 * maps).round().to(torch.uint8)


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
