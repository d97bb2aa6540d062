"""Freeze the layers that are not trained."""

from pipeline.networks.building import head_of

from torch import nn


def set_trainable(network: nn.Module, layers: str) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Freeze everything except the head and part of the backbone below it; return the trained parameters of both.

    `layers` is the part of the backbone to train: `head` (none of it), `batchnorm`, `last_half` or `all`.
    `last_half` is the half of the backbone's parameter tensors closest to the head; in ResNet-18, layer3 and layer4.
    """
    head = list(head_of(network).parameters())
    in_head = set(head)
    backbone = [parameter for parameter in network.parameters() if parameter not in in_head]
    trained = {
        "head": [],
        "batchnorm": [
            parameter
            for module in network.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
            for parameter in module.parameters()
        ],
        "last_half": _last_half(network, backbone),
        "all": backbone,
    }[layers]
    network.requires_grad_(False)
    for parameter in head + trained:
        parameter.requires_grad_(True)
    return head, trained


def _last_half(network: nn.Module, backbone: list[nn.Parameter]) -> list[nn.Parameter]:
    """The later half of `backbone`; a layer straddling the midpoint stays frozen."""
    earlier = set(backbone[: len(backbone) // 2])
    for module in network.modules():
        own = set(module.parameters(recurse=False))
        if earlier & own:
            earlier |= own
    return [parameter for parameter in backbone if parameter not in earlier]


def set_training(network: nn.Module, layers: str, batchnorm_statistics: str) -> None:
    """Set training mode, except in frozen layers: their BatchNorm statistics stay fixed and their dropout is off.

    If `batchnorm_statistics` is `fixed`, those of all layers stay fixed.
    """
    network.train(layers != "head")
    for module in network.modules():
        parameters = list(module.parameters())
        is_frozen = parameters and not any(parameter.requires_grad for parameter in parameters)
        if is_frozen or (batchnorm_statistics == "fixed" and isinstance(module, nn.modules.batchnorm._BatchNorm)):
            module.eval()
    head_of(network).train()
