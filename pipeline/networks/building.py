"""Build torchvision's and timm's networks with pretrained weights and our own head."""

import difflib
import re
import warnings
from collections import OrderedDict
from typing import cast

from pipeline.core.errors import UserError, first_line, list_some
from pipeline.core.params import MAX_SIZE, MIN_SIZE
from pipeline.networks.from_timm import is_timms, timms_names, timms_network, timms_normalisation
from pipeline.networks.normalisation import IMAGENET, Normalisation
from pipeline.networks.weights import read_weights, strip_prefix

import torch
from torch import Tensor, nn
from torchvision import models


class Head(nn.Sequential):
    """Maps features to a logit per class, always in float32: bfloat16's roughly three significant digits are too few.

    Two layers (`width` hidden units, ReLU, dropout), or a single linear layer if `width` is None.
    """

    def __init__(self, features: int, classes: int, width: int | None, dropout: float) -> None:
        if width:
            layers = [nn.Linear(features, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, classes)]
        else:
            layers = [nn.Linear(features, classes)]
        super().__init__(*layers)

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float())


def build_network(
    name: str, weights: str, classes: int, head_width: int | None, dropout: float, seed: int
) -> nn.Module:
    """Build the network `name` with a new head instead of its last linear layer; `seed` sets its weights.

    `weights` is `none` (random, also from `seed`), one of torchvision's or timm's names (downloaded once, checked by
    hash), or a .pth, .pt, .ckpt or .safetensors file named like torch.hub's, `<name>-<SHA-256, at least 8 digits>.pth`.
    Checkpoints of DataParallel and Lightning work too. Only the weights below the head are used.
    Raises UserError for an unknown name, and for weights that are missing, damaged or for a different network.
    """
    require_known(name)
    torch.manual_seed(seed)
    network = bare_network(name)
    if weights != "none":
        _load_backbone(network, name, weights)
    torch.manual_seed(seed)
    replace_output(network, classes, head_width, dropout)
    return network


def require_known(name: str) -> None:
    """Raise UserError unless `name` is one of torchvision's classification networks, or one of timm's."""
    library, known = ("timm", timms_names()) if is_timms(name) else ("torchvision", models.list_models(module=models))
    if name not in known:
        similar = ", ".join(difflib.get_close_matches(name, known)) or ("timm/" * is_timms(name) + "resnet18")
        raise UserError(
            f"params.yaml: networks.{name}: {library} has no such network; expected a name such as {similar}"
        )


def normalisation_of(name: str, weights: str) -> Normalisation:
    """How the network `name` expects its images, with these `weights` (of `networks.<name>.weights`).

    Raises UserError for an unknown name, and if `weights` name some of timm's, but not of this network.
    """
    require_known(name)
    return timms_normalisation(name, weights) if is_timms(name) else IMAGENET


def head_of(network: nn.Module) -> Head:
    return cast(Head, network.get_submodule(head_name(network)))


def head_name(network: nn.Module) -> str:
    """The dotted name of the network's Head."""
    return next(name for name, module in network.named_modules() if isinstance(module, Head))


def divide_logits(network: nn.Module, weights: dict[str, Tensor], temperature: float) -> dict[str, Tensor]:
    """Return `weights`, a state_dict of `network`, changed so that all logits are divided by `temperature`."""
    output = f"{head_name(network)}.{len(head_of(network)) - 1}."  # the head's last layer, which is linear
    return {key: tensor / temperature if key.startswith(output) else tensor for key, tensor in weights.items()}


def check_image_size(network: nn.Module, name: str, size: int, key: str) -> None:
    """Raise UserError if `network` cannot take images of `size` pixels a side, which `key` in params.yaml sets.

    Some networks (ViT) accept only one size, others need a minimum size; the error names the nearest size that works.
    Leaves the network in eval mode.
    """
    network.eval()
    if error := _size_error(network, size):
        sizes = sorted(range(MIN_SIZE, MAX_SIZE + 1), key=lambda other: abs(other - size))
        works = next((other for other in sizes if not _size_error(network, other)), None)
        advice = f"set {key} to {works}, the nearest size that works" if works else f"change {key}"
        raise UserError(f"{name} cannot take images of {size}x{size} pixels ({first_line(error)}); {advice}")


@torch.inference_mode()
def _size_error(network: nn.Module, size: int) -> Exception | None:
    """The error that the network raises for an image of `size` pixels a side, or None."""
    try:
        network(torch.zeros(1, 3, size, size))
    except (RuntimeError, AssertionError, ValueError) as error:
        return error
    return None


def bare_network(name: str) -> nn.Module:
    """The network `name` with random weights and without auxiliary heads."""
    if is_timms(name):
        return timms_network(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # googlenet and inception_v3 warn about weight initialisation
        network = models.get_model(name, weights=None)
    if isinstance(network, models.GoogLeNet | models.Inception3):
        network.aux_logits = False
        for auxiliary_head in ("aux1", "aux2", "AuxLogits"):
            network.register_module(auxiliary_head, None)
        network.transform_input = True  # they expect another normalisation, and convert to it themselves
    return network


def output_name(network: nn.Module) -> str:
    """The name of the module that a Head replaces.

    It is the last linear layer, in SqueezeNet the whole classifier, and in timm's networks what they say it is.
    """
    if isinstance(network, models.SqueezeNet):
        return "classifier"
    if get_classifier := getattr(network, "get_classifier", None):
        classifier = get_classifier()
        return next(name for name, module in network.named_modules() if module is classifier)
    return [name for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1]


def replace_output(network: nn.Module, classes: int, head_width: int | None, dropout: float) -> None:
    """Replace the network's output layer by a new Head."""
    name = output_name(network)
    if isinstance(network, models.SqueezeNet):  # its classifier is a convolution followed by pooling
        replacement = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), Head(512, classes, head_width, dropout))
    else:
        output = cast(nn.Linear, network.get_submodule(name))
        replacement = Head(output.in_features, classes, head_width, dropout)
    network.set_submodule(name, replacement)


def _load_backbone(network: nn.Module, name: str, weights: str) -> None:
    """Load all weights except the output layer's, which may be missing or for other classes."""
    tensors = read_weights(name, weights)
    unused = (f"{output_name(network)}.", "aux1.", "aux2.", "AuxLogits.")
    expected = {key: tensor for key, tensor in network.state_dict().items() if not key.startswith(unused)}
    if isinstance(network, models.DenseNet):  # torchvision's files have norm.1 instead of norm1
        tensors = {re.sub(r"(denselayer\d+\.(?:norm|conv))\.", r"\1", key): tensors[key] for key in tensors}
    tensors = strip_prefix(tensors, [*expected])
    backbone = {key: tensor for key, tensor in tensors.items() if not key.startswith(unused)}
    if difference := _describe_difference(expected, backbone):
        raise UserError(
            f"networks.{name}.weights: {weights} contains weights for a different network ({difference}); expected "
            f"those of {'timm' if is_timms(name) else 'torchvision'}'s {name.rpartition('/')[2]}"
        )
    network.load_state_dict(with_version(backbone, network), strict=False)


def _describe_difference(expected: dict[str, Tensor], found: dict[str, Tensor]) -> str:
    """The first tensors in which `found` differs from what a network expects; empty if it does not."""
    # Older files do not count BatchNorm's batches.
    missing = [key for key in expected if key not in found and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in found if key not in expected]
    reshaped = [
        f"{key} {list(found[key].shape)} instead of {list(tensor.shape)}"
        for key, tensor in expected.items()
        if key in found and found[key].shape != tensor.shape
    ]
    differing = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    return "; ".join(f"{how}: {list_some(keys)}" for how, keys in differing.items() if keys)


def with_version(state_dict: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Return `state_dict` marked with the version of `network`'s class; MNASNet refuses one without a version."""
    versioned = OrderedDict(state_dict)
    # None for the layers: BatchNorm accepts that.
    versioned._metadata = {"": {"version": network._version}}  # pyrefly: ignore[missing-attribute]
    return versioned
