"""torchvision's networks with a head for two classes: building, freezing, saving and loading."""

import difflib
import json
import re
import warnings
from collections import OrderedDict
from pathlib import Path

from catsdogs import CLASSES
from catsdogs.errors import UserError
from catsdogs.weights import read_weights, strip_prefix

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse
from torchvision import models


class Head(nn.Sequential):
    """Features to logits, always in float32: bfloat16's three digits are too coarse for a probability.

    Two layers (`width` hidden units, ReLU, dropout), or with `width` 0 a single linear layer.
    """

    def __init__(self, features: int, width: int, dropout: float) -> None:
        if width:
            layers = [nn.Linear(features, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, len(CLASSES))]
        else:
            layers = [nn.Linear(features, len(CLASSES))]
        super().__init__(*layers)

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return super().forward(features.float())


def build_network(name: str, weights: str, head_width: int, dropout: float, seed: int) -> nn.Module:
    """torchvision's network `name`, its last linear layer replaced by a new head drawn from `seed`.

    `weights`: `none` (drawn from `seed` as well), torchvision's name for them (downloaded once, hash checked), or a
    file named like torch.hub's, `<name>-<first digits of its SHA-256>.pth`, or `.safetensors`; also a checkpoint of
    DataParallel or Lightning. What it has below the head is used.
    Raises UserError for an unknown name, and for weights that are missing, damaged or another network's.
    """
    known = models.list_models(module=models)
    if name not in known:
        similar = ", ".join(difflib.get_close_matches(name, known)) or "resnet18"
        raise UserError(f"params.yaml: networks.{name}: torchvision has no such network; it has {similar} and others")
    torch.manual_seed(seed)
    network = _build(name)
    if weights != "none":
        _load_body(network, name, weights)
    torch.manual_seed(seed)
    _replace_output(network, head_width, dropout)
    return network


def head_of(network: nn.Module) -> Head:
    return next(module for module in network.modules() if isinstance(module, Head))


def set_trainable(network: nn.Module, layers: str) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Freeze all but the head and, of the body below it, `layers`: `head` (nothing), `batchnorm`, `last_half` or `all`.

    `last_half` is the half of the body's layers that is next to the head, counted by their parameter tensors: of
    ResNet-18 layer3 and layer4. Gives the parameters that are trained of the head, and of the body.
    """
    head = list(head_of(network).parameters())
    in_head = set(head)
    body = [parameter for parameter in network.parameters() if parameter not in in_head]
    trained = {
        "head": [],
        "batchnorm": [
            parameter
            for module in network.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
            for parameter in module.parameters()
        ],
        "last_half": _last_half(network, body),
        "all": body,
    }[layers]
    network.requires_grad_(False)
    for parameter in head + trained:
        parameter.requires_grad_(True)
    return head, trained


def _last_half(network: nn.Module, body: list[nn.Parameter]) -> list[nn.Parameter]:
    """The later half of `body`, less the rest of a layer that the middle falls into."""
    earlier = set(body[: len(body) // 2])
    for module in network.modules():
        own = set(module.parameters(recurse=False))
        if earlier & own:
            earlier |= own
    return [parameter for parameter in body if parameter not in earlier]


def set_training(network: nn.Module, layers: str) -> None:
    """Training mode, but for what `set_trainable` froze: BatchNorm keeps its statistics there, nothing drops out."""
    network.train(layers != "head")
    for module in network.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()
    head_of(network).train()


def check_image_size(network: nn.Module, name: str, size: int, key: str) -> None:
    """Raise UserError where `network` cannot take pictures of `size` pixels a side, which `key` of params.yaml sets.

    Some networks (ViT) take one size alone, and others none that is too small. Leaves eval mode on.
    """
    try:
        with torch.inference_mode():
            network.eval()(torch.zeros(1, 3, size, size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(f"{name} cannot take pictures of {size} by {size}: {error}; change {key}") from None


def fold_batchnorm(network: nn.Module) -> nn.Module:
    """`network` for inference: a copy in eval mode in which a BatchNorm is a part of the convolution before it.

    It computes the same, but for the last digits. A network without nn.BatchNorm2d is given back itself. Eval mode is
    left on in `network`, too.
    """
    network.eval()
    if not any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        return network
    return fuse(fx.GraphModule(network, _HeadAsLeaf().trace(network)), no_trace=True)


class BothViews(nn.Module):
    """The mean of a network's logits for photos and for their mirror images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return (self.network(images) + self.network(images.flip(-1))) / 2


def ready_to_predict(network: nn.Module, test_time_flip: bool, device: torch.device) -> nn.Module:
    """A trained network as predictions are made with it: folded, on `device`, and looking at both views if asked to."""
    network = fold_batchnorm(network).to(device, memory_format=torch.channels_last)
    return BothViews(network) if test_time_flip else network


class _HeadAsLeaf(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, Head) or super().is_leaf_module(module, name)  # autocast cannot be traced


def save_network(path: Path, state_dict: dict[str, Tensor], description: dict) -> None:
    """Write a state_dict with all that `load_network` needs to know beside it; equal content gives equal bytes."""
    tensors = {key: tensor.contiguous() for key, tensor in state_dict.items()}
    path.write_bytes(save(tensors, metadata={"network": json.dumps(description, sort_keys=True)}))


def load_network(path: Path) -> tuple[nn.Module, dict]:
    """The network that `save_network` wrote, and its description. Raises UserError."""
    try:
        with safe_open(path, framework="pt") as file:
            description = json.loads((file.metadata() or {})["network"])
            state_dict = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        network = _build(description["network"])
        _replace_output(network, description["head_width"], description["dropout"])
        network.load_state_dict(_with_version(state_dict, network))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"{path}: is not a model of this pipeline ({_first_line(error)}); run `dvc repro` to restore it"
        ) from None
    return network, description


def _build(name: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of weight initialisation, googlenet and inception_v3
        network = models.get_model(name, weights=None)
    if getattr(network, "aux_logits", False):  # the side heads of googlenet and inception_v3
        network.aux_logits = False
        network.aux1 = network.aux2 = network.AuxLogits = None
    if hasattr(network, "transform_input"):  # the same two expect pixels scaled otherwise, and undo our scaling
        network.transform_input = True
    return network


def _output_name(network: nn.Module) -> str:
    """The name of what a Head takes the place of: the last linear layer, but in SqueezeNet the whole classifier."""
    if isinstance(network, models.SqueezeNet):
        return "classifier"
    return [name for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1]


def _replace_output(network: nn.Module, head_width: int, dropout: float) -> None:
    name = _output_name(network)
    if isinstance(network, models.SqueezeNet):  # it ends in a convolution, and pools after it
        replacement = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), Head(512, head_width, dropout))
    else:
        replacement = Head(network.get_submodule(name).in_features, head_width, dropout)
    network.set_submodule(name, replacement)


def _load_body(network: nn.Module, name: str, weights: str) -> None:
    """Load all but the output layer, whose weights may be missing or for other classes."""
    tensors = read_weights(name, weights)
    unused = (f"{_output_name(network)}.", "aux1.", "aux2.", "AuxLogits.")
    expected = [key for key in network.state_dict() if not key.startswith(unused)]
    if isinstance(network, models.DenseNet):  # its published files write norm.1 for norm1
        tensors = {re.sub(r"(denselayer\d+\.(?:norm|conv))\.", r"\1", key): tensors[key] for key in tensors}
    tensors = strip_prefix(tensors, expected)
    wrong = f"networks.{name}.weights: {weights} holds another network's weights"
    try:
        body = {key: tensor for key, tensor in tensors.items() if not key.startswith(unused)}
        missing, unexpected = network.load_state_dict(_with_version(body, network), strict=False)
    except (RuntimeError, AttributeError) as error:
        raise UserError(f"{wrong} ({_first_line(error)})") from None
    if differing := unexpected + [key for key in missing if not key.startswith(unused)]:
        raise UserError(f"{wrong}: they differ in {differing[0]}")


def _with_version(state_dict: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """`state_dict` as a network of this version wrote it; MNASNet refuses one that does not say which did."""
    versioned = OrderedDict(state_dict)
    versioned._metadata = {"": {"version": network._version}}  # its layers' are unknown: BatchNorm then takes any
    return versioned


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
