"""timm's networks, whose names here begin with `timm/`. Only they need the package, an extra."""

import functools
import re
from types import ModuleType

from pipeline.core.errors import UserError, list_some
from pipeline.core.params import weights_file
from pipeline.core.process import extra_packages
from pipeline.networks.normalisation import Normalisation
from pipeline.networks.startup import import_timm

from torch import nn

PREFIX = "timm/"


def is_timms(name: str) -> bool:
    """Whether a network's name in params.yaml, or the name of its weights, is timm's."""
    return name.startswith(PREFIX)


@functools.cache
def timm() -> ModuleType:
    """The package; if it is not installed, exit with a one-line error."""
    with extra_packages("timm"):
        return import_timm()


def timms_names() -> list[str]:
    """The names of timm's networks, as params.yaml has them."""
    return [f"{PREFIX}{architecture}" for architecture in timm().list_models()]


def timms_network(name: str) -> nn.Module:
    """timm's network `name`, with random weights and a linear classifier for one class.

    A vision transformer is made for images of any size that its patches fill: dynamic_img_size interpolates its
    position embeddings.
    """
    build = functools.partial(timm().create_model, name.removeprefix(PREFIX), pretrained=False, num_classes=1)
    try:
        network = build(dynamic_img_size=True)
    except TypeError:  # other networks do not know this
        network = build()
    if not isinstance(classifier := network.get_classifier(), nn.Linear):
        raise UserError(
            f"params.yaml: networks.{name}: its classifier is {type(classifier).__name__}; expected a network with one "
            "linear layer as its classifier"
        )
    return network


def fit_to_size(network: nn.Module, size: int) -> None:
    """Interpolate a transformer's position embeddings once for images of `size` pixels a side, not for each batch.

    In an exported graph they are then constants; runtimes interpolate differently. Other networks stay as they are.
    """
    set_input_size = getattr(network, "set_input_size", None)
    if set_input_size and getattr(network, "dynamic_img_size", False):
        set_input_size(img_size=(size, size))


def timms_weights(name: str) -> list[str]:
    """timm's names for the weights of its network `name`, such as timm/resnet18.a1_in1k; its default ones first."""
    architecture = name.removeprefix(PREFIX)
    default = f"{architecture}.{timm().get_pretrained_cfg(architecture).tag}"
    found = sorted(timm().list_pretrained(f"{architecture}.*"), key=lambda weights: weights != default)
    return [f"{PREFIX}{weights}" for weights in found]


def timms_normalisation(name: str, weights: str) -> Normalisation:
    """How timm normalised images for `weights` of its network `name`; if it does not know them, for its default ones.

    Raises UserError if `weights` look like timm's, but are not those of this network.
    """
    tagged = name.removeprefix(PREFIX)
    if is_timms(weights) and not weights_file(weights):
        require_timms_weights(name, weights)
        tagged = _tagged(weights)
    elif (path := weights_file(weights)) and f"{PREFIX}{_tagged(path.stem)}" in timms_weights(name):
        tagged = _tagged(path.stem)
    configuration = timm().get_pretrained_cfg(tagged)
    return Normalisation(tuple(configuration.mean), tuple(configuration.std))


def require_timms_weights(name: str, weights: str) -> None:
    """Raise UserError unless `weights` are timm's for its network `name`."""
    known = timms_weights(name)
    if f"{PREFIX}{_tagged(weights)}" not in known:
        timms = f", or timm's {list_some(known)}" if known else "; timm has none for this network"
        raise UserError(
            f"params.yaml: networks.{name}.weights is {weights!r}; expected none, a file named "
            f"{name.removeprefix(PREFIX)}-<first digits of its SHA-256>.pth or .safetensors{timms}"
        )


def _tagged(weights: str) -> str:
    """`resnet18.a1_in1k` of timm/resnet18.a1_in1k@0123abcd, and of the file name resnet18.a1_in1k-0123abcd."""
    return re.sub(r"[@-][0-9a-f]{8,64}$", "", weights.removeprefix(PREFIX))
