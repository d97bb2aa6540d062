"""torchvision's networks with a head for two classes: building, pretrained weights, saving and loading."""

import difflib
import hashlib
import io
import json
import re
import socket
import sys
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlparse

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse
from torchvision import models

from catsdogs import CLASSES
from catsdogs.errors import UserError

DOWNLOAD_TIMEOUT_S = 30  # of waiting for a connection, and for each further part


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
    file named like torch.hub's, `<name>-<first digits of its SHA-256>.pth`, whose layers below the head are used.
    Raises UserError for an unknown name, and for weights that are missing, damaged or another network's.
    """
    known = models.list_models(module=models)
    if name not in known:
        similar = ", ".join(difflib.get_close_matches(name, known)) or "resnet18"
        raise UserError(f"params.yaml: networks.{name}: torchvision has no such network; it has {similar} and others")
    torch.manual_seed(seed)
    network = _build(name)
    if weights != "none":
        path = Path(weights).expanduser() if weights.endswith(".pth") else _downloaded(name, weights)
        _load_file(network, name, path)
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
        raise UserError(f"{path}: is not a model of this pipeline ({_first_line(error)}); train it again") from None
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


def _downloaded(name: str, weights: str) -> Path:
    """torchvision's file of the `weights` of that name, in torch.hub's cache; downloaded if it is not there yet."""
    # By their own names: DEFAULT is an alias, and stands for other weights in another torchvision.
    known = {entry.name: entry for entry in models.get_model_weights(name)}
    if weights not in known:
        raise UserError(
            f"params.yaml: networks.{name}.weights is {weights!r}; expected none, a file named "
            f"{name}-<first digits of its SHA-256>.pth, or torchvision's {', '.join(known)}"
        )
    url = known[weights].url
    path = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(url).path).name)
    if not path.exists():
        print(f"downloading {url}", flush=True)
        digits = torch.hub.HASH_REGEX.search(path.name)[1]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _waiting_at_most(DOWNLOAD_TIMEOUT_S):
                torch.hub.download_url_to_file(url, str(path), digits, progress=sys.stderr.isatty())
        except (OSError, HTTPException, ValueError, RuntimeError) as error:  # the last: a wrong hash, or cut off
            raise UserError(
                f"networks.{name}: {url} could not be downloaded ({_first_line(error)}); run this again, or put that "
                f"file anywhere and give its path as networks.{name}.weights, or set that to none"
            ) from None
    return path


@contextmanager
def _waiting_at_most(seconds: float) -> Iterator[None]:
    """Bound every wait of connections made meanwhile, since torch.hub gives its own no timeout."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _load_file(network: nn.Module, name: str, path: Path) -> None:
    """Load all but the output layer, whose weights may be missing or for other classes."""
    key = f"networks.{name}.weights"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{key}: {path} cannot be read ({error.strerror})") from None
    digits = re.fullmatch(r".+-([0-9a-f]{8,64})", path.stem)
    if not digits:
        raise UserError(
            f"{key}: {path} should bear the name that it was published under, like {name}-<8 or more first digits of "
            "its SHA-256>.pth; rename it"
        )
    sha256 = hashlib.sha256(content).hexdigest()
    if not sha256.startswith(digits[1]):
        raise UserError(
            f"{key}: {path} is damaged (its SHA-256 begins {sha256[:8]}, not {digits[1]} as its name says); "
            "delete it, and get it again"
        )
    try:
        with warnings.catch_warnings(action="ignore"):  # of odd pickles, which the error names
            state_dict = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except MemoryError:
        raise
    except Exception as error:  # a pickle that is none may raise anything
        raise UserError(f"{key}: {path} is not a file of weights ({type(error).__name__})") from None
    if isinstance(network, models.DenseNet):  # its published files write norm.1 for norm1
        state_dict = {re.sub(r"(denselayer\d+\.(?:norm|conv))\.", r"\1", key): state_dict[key] for key in state_dict}
    unused = (f"{_output_name(network)}.", "aux1.", "aux2.", "AuxLogits.")
    try:
        body = {key: tensor for key, tensor in state_dict.items() if not key.startswith(unused)}
        missing, unexpected = network.load_state_dict(_with_version(body, network), strict=False)
        differing = unexpected + [key for key in missing if not key.startswith(unused)]
    except (RuntimeError, AttributeError) as error:
        raise UserError(f"{key}: {path} holds another network's weights ({_first_line(error)})") from None
    if differing:
        raise UserError(f"{key}: {path} holds another network's weights: they differ in {differing[0]}")


def _with_version(state_dict: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """`state_dict` as a network of this version wrote it; MNASNet refuses one that does not say which did."""
    versioned = OrderedDict(state_dict)
    versioned._metadata = {"": {"version": network._version}}  # its layers' are unknown: BatchNorm then takes any
    return versioned


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
