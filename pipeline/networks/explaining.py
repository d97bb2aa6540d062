"""Heat maps: which parts of an image a network's answer depends on."""

import torch
from torch import Tensor, nn
from torchvision import models


def heat_maps(network: nn.Module, images: Tensor) -> Tensor | None:
    """Grad-CAM for each image's most probable class: uint8 [N, height, width], on the CPU.

    `images` are normalised, float32 [N, 3, size, size]. A map has the resolution of the network's last feature map
    (7 x 7 for ResNet at 224 pixels); 255 is the part that speaks most for the class. All of it is 0 if nothing does.
    None for a network without such a feature map (ViT). Leaves `network`, which must not be folded, in eval mode.

    Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017.
    """
    from captum.attr import LayerGradCam  # here, because it takes a second, and most users of this room need none

    network.eval()
    layer, logits = _run(network, images)
    if layer is None:
        return None
    maps = LayerGradCam(network, layer).attribute(images, target=logits.argmax(1), relu_attributions=True)
    maps = maps.detach().squeeze(1).cpu()
    maps /= maps.amax(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
    return (255 * maps).round().to(torch.uint8)


@torch.no_grad()
def _run(network: nn.Module, images: Tensor) -> tuple[nn.Module | None, Tensor]:
    """The layer whose output is the network's last feature map, if it has one; and the logits."""
    layers: list[nn.Module] = []

    def remember(module: nn.Module, _: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and min(output.shape[2:]) > 1:
            layers.append(module)

    hooks = [module.register_forward_hook(remember) for module in network.modules()]
    try:
        logits = network(images)
    finally:
        for hook in hooks:
            hook.remove()
    has_maps = layers and not isinstance(
        network, models.VisionTransformer
    )  # its only 4-D output is that of the patches
    return layers[-1] if has_maps else None, logits
