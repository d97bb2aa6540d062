"""Files of random weights."""

import hashlib
import io
from pathlib import Path

import torch
import torchvision


def write_weights(folder: Path, name: str) -> Path:
    """Random weights of torchvision's network `name`, in a file whose name contains its hash, as torch.hub's do."""
    torch.manual_seed(7)
    return save_weights(folder, name, torchvision.models.get_model(name, weights=None).state_dict())


def save_weights(folder: Path, name: str, content: dict, suffix: str = ".pth") -> Path:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return name_by_hash(folder, name, suffix, buffer.getvalue())


def name_by_hash(folder: Path, name: str, suffix: str, content: bytes) -> Path:
    """Write `content` to <name>-<first digits of its SHA-256><suffix>."""
    path = folder / f"{name}-{hashlib.sha256(content).hexdigest()[:8]}{suffix}"
    path.write_bytes(content)
    return path
