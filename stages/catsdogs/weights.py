"""Files of pretrained weights: torchvision's, downloaded once, or the user's own; checked by the hash in their name."""

import hashlib
import io
import re
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlparse

from catsdogs.errors import UserError
from catsdogs.params import weights_file

import safetensors.torch
import torch
from torch import Tensor
from torchvision import models

DOWNLOAD_TIMEOUT_S = 30  # of waiting for a connection, and for each further part


def read_weights(name: str, weights: str) -> dict[str, Tensor]:
    """The tensors that `networks.<name>.weights` names, under the names that the file gives them.

    Raises UserError for a file that is missing, damaged or holds no tensors, and for a failed download.
    """
    path = weights_file(weights) or _downloaded(name, weights)
    key = f"networks.{name}.weights"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{key}: {path} cannot be read ({error.strerror})") from None
    _check_hash(key, name, path, hashlib.sha256(content).hexdigest())
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load(content)
        with warnings.catch_warnings(action="ignore"):  # of odd pickles, which the error names
            loaded = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except MemoryError:
        raise
    except Exception as error:  # a pickle that is none may raise anything
        raise UserError(
            f"{key}: {path} is not a file of weights that can be loaded without running code in it "
            f"({type(error).__name__}); save the network's state_dict alone"
        ) from None
    if not (tensors := _find_tensors(loaded)):
        raise UserError(f"{key}: {path} holds no weights; expected a network's state_dict")
    return tensors


def strip_prefix(tensors: dict[str, Tensor], expected: list[str]) -> dict[str, Tensor]:
    """`tensors` without what a wrapper puts before every `expected` name: DataParallel `module.`, say.

    Tensors without that prefix, such as those of a loss, are left out.
    """
    candidates = {key.removesuffix(expected[0]) for key in tensors if key.endswith(expected[0])}
    prefix = max(sorted(candidates), key=lambda start: sum(start + name in tensors for name in expected), default="")
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _check_hash(key: str, name: str, path: Path, sha256: str) -> None:
    """Raise UserError unless the file's name ends in the first digits of its SHA-256, as torch.hub's do."""
    digits = re.fullmatch(r".+-([0-9a-f]{8,64})", path.stem)
    if not digits:
        raise UserError(
            f"{key}: {path} should have the first digits of its SHA-256 in its name, so that DVC sees when it changes; "
            f"rename it to {name}-{sha256[:8]}{path.suffix}"
        )
    if not sha256.startswith(digits[1]):
        raise UserError(
            f"{key}: {path} is damaged (its SHA-256 begins {sha256[:8]}, not {digits[1]} as its name says); "
            "delete it and download it again"
        )


def _find_tensors(loaded: object) -> dict[str, Tensor]:
    """The state_dict in a loaded file: all of it, or the largest in a checkpoint that keeps more (epoch, optimizer)."""
    if not isinstance(loaded, dict):
        return {}
    found = [
        {key: value for key, value in candidate.items() if isinstance(key, str) and isinstance(value, Tensor)}
        for candidate in (loaded, *loaded.values())
        if isinstance(candidate, dict)
    ]
    return max(found, key=len)


def _downloaded(name: str, weights: str) -> Path:
    """torchvision's file of the `weights` of that name, in torch.hub's cache; downloaded if it is not there yet."""
    # By their own names: DEFAULT is an alias, and stands for other weights in another torchvision.
    known = {entry.name: entry for entry in models.get_model_weights(name)}
    if weights not in known:
        raise UserError(
            f"params.yaml: networks.{name}.weights is {weights!r}; expected none, a file named "
            f"{name}-<first digits of its SHA-256>.pth or .safetensors, or torchvision's {', '.join(known)}"
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
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"networks.{name}: {url} could not be downloaded ({reason}); run this again, or put that "
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
