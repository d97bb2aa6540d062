"""Pretrained weights: torchvision's or timm's, downloaded once, or the user's; the file's name has its hash."""

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
from typing import TypeGuard
from urllib.error import URLError
from urllib.parse import urlparse

from pipeline.core.errors import UserError, first_line
from pipeline.core.params import find_weights
from pipeline.core.process import DISK_FULL
from pipeline.networks.from_timm import is_timms, require_timms_weights

import safetensors.torch
import torch
from torch import Tensor
from torchvision import models

DOWNLOAD_TIMEOUT_S = 30  # for connecting, and for each chunk
TIMM_NAME = re.compile(r"timm/([\w.-]+)(?:@([0-9a-f]{8,64}))?")
TIMM_URL = "https://huggingface.co/timm/{}/resolve/main/model.safetensors"  # where timm publishes its weights
SHOWN_DIGITS = 8  # of a SHA-256


def read_weights(name: str, weights: str) -> dict[str, Tensor]:
    """Return the tensors of `networks.<name>.weights`, keyed as in the file.

    Raises UserError if the file is missing, damaged or contains no tensors, or if the download fails.
    """
    path = find_weights(name, weights) or _downloaded(name, weights)
    key = f"networks.{name}.weights"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{key}: {path} cannot be read ({error.strerror}); check the path") from None
    _check_hash(key, name, path, hashlib.sha256(content).hexdigest())
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load(content)
        with warnings.catch_warnings(action="ignore"):  # about malformed pickles, which the error below covers
            loaded = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except MemoryError:
        raise
    except Exception as error:  # an invalid pickle may raise anything
        raise UserError(
            f"{key}: {path} cannot be loaded without running code from the file ({type(error).__name__}); "
            "save only the network's state_dict"
        ) from None
    if not (tensors := _find_tensors(loaded)):
        raise UserError(f"{key}: {path} contains no weights; expected a network's state_dict")
    return tensors


def strip_prefix(tensors: dict[str, Tensor], expected: list[str]) -> dict[str, Tensor]:
    """Remove the prefix that a wrapper puts before every `expected` name, such as DataParallel's `module.`.

    Tensors without the prefix, such as those of a loss, are dropped.
    """
    candidates = {key.removesuffix(expected[0]) for key in tensors if key.endswith(expected[0])}
    prefix = max(sorted(candidates), key=lambda start: sum(start + name in tensors for name in expected), default="")
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _check_hash(key: str, name: str, path: Path, sha256: str) -> None:
    """Raise UserError unless the file's name ends in at least 8 digits of its SHA-256, as torch.hub's do."""
    digits = re.fullmatch(r".+-([0-9a-f]{8,64})", path.stem)
    if not digits:
        raise UserError(
            f"{key}: the name of {path} must end in the first digits of its SHA-256, so that DVC notices when the file "
            f"changes; rename it to {name.rpartition('/')[2]}-{sha256[:SHOWN_DIGITS]}{path.suffix}"
        )
    if not sha256.startswith(digits[1]):
        raise UserError(
            f"{key}: {path} is damaged (its SHA-256 starts with {sha256[:SHOWN_DIGITS]}, its name says {digits[1]}); "
            "delete it and download it again"
        )


def _find_tensors(loaded: object) -> dict[str, Tensor]:
    """The state_dict in a loaded file: the whole file, or the largest in a checkpoint (with epoch, optimizer, ...)."""
    if not isinstance(loaded, dict):
        return {}
    found = [
        {key: value for key, value in candidate.items() if isinstance(key, str) and isinstance(value, Tensor)}
        for candidate in (loaded, *loaded.values())
        if isinstance(candidate, dict)
    ]
    return max(found, key=len)


def _downloaded(name: str, weights: str) -> Path:
    """The path of torchvision's or timm's `weights` in torch.hub's cache; downloads them if missing.

    Raises UserError if there are no such weights, if the download fails, or if timm's are named without their hash.
    """
    if is_timms(name):
        require_timms_weights(name, weights)
    folder = Path(torch.hub.get_dir(), "checkpoints")
    if timm := TIMM_NAME.fullmatch(weights):
        model, digits = timm.groups()
        url = TIMM_URL.format(model)
        if not digits:
            digits = _hash_of_timm(name, url, folder / f"{model}.safetensors")
            raise UserError(
                f"params.yaml: networks.{name}.weights is {weights}; write {weights}@{digits}, the first digits of the "
                "published file's SHA-256, so that a file published later cannot change your results"
            )
        return _download(name, url, folder / f"{model}-{digits}.safetensors", digits)
    # Without aliases: DEFAULT may stand for different weights in another version of torchvision.
    known = {entry.name: entry for entry in models.get_model_weights(name)}
    if weights not in known:
        raise UserError(
            f"params.yaml: networks.{name}.weights is {weights!r}; expected none, a file named "
            f"{name}-<first digits of its SHA-256>.pth or .safetensors, torchvision's {', '.join(known)}, or timm's, "
            f"such as timm/{name}.a1_in1k"
        )
    url = known[weights].url
    path = folder / Path(urlparse(url).path).name
    (digits,) = torch.hub.HASH_REGEX.findall(path.name)
    return _download(name, url, path, digits)


def _hash_of_timm(name: str, url: str, path: Path) -> str:
    """Download timm's file, keep it for the next run under its hash, and return the hash's first digits."""
    _download(name, url, path, digits=None)
    digits = hashlib.sha256(path.read_bytes()).hexdigest()[:SHOWN_DIGITS]
    path.rename(path.with_name(f"{path.stem}-{digits}.safetensors"))
    return digits


def _download(name: str, url: str, path: Path, digits: str | None) -> Path:
    """Download `url` to `path`, unless that exists. Raises UserError if its SHA-256 does not start with `digits`."""
    if not path.exists():
        print(f"downloading {url}", flush=True)
        yourself = f"download the file yourself and set networks.{name}.weights to its path"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _waiting_at_most(DOWNLOAD_TIMEOUT_S):
                torch.hub.download_url_to_file(url, str(path), digits, progress=sys.stderr.isatty())
        except (OSError, HTTPException, ValueError, RuntimeError) as error:  # RuntimeError: wrong hash, or truncated
            if _is_of_folder(error):
                raise UserError(
                    f"networks.{name}: {path} cannot be written ({error.strerror}); set the environment variable "
                    f"TORCH_HOME to a folder that you can write to, or {yourself}"
                ) from None
            cause = getattr(error, "reason", None)
            reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else first_line(error)
            raise UserError(
                f"networks.{name}: {url} could not be downloaded ({reason}); run this again, or {yourself}, or "
                "start from random weights (none, with train.layers: all)"
            ) from None
    return path


def _is_of_folder(error: Exception) -> TypeGuard[OSError]:
    """Whether a download failed because its file could not be written, and not because of the network."""
    if not isinstance(error, OSError) or isinstance(error, URLError):
        return False
    return error.filename is not None or error.errno in DISK_FULL


@contextmanager
def _waiting_at_most(seconds: float) -> Iterator[None]:
    """Temporarily set the default socket timeout, because torch.hub sets none."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
