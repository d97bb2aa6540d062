"""Reading a packed split, and making batches of it."""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from catsdogs.errors import UserError

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

IMAGENET_MEAN = [0.485, 0.456, 0.406]  # red, green and blue, from 0 to 1, as torchvision's weights expect them
IMAGENET_STD = [0.229, 0.224, 0.225]


@dataclass(frozen=True)
class PackedSplit:
    """`pixels` uint8 [N, size, size, 3] and `labels` int64 [N] on one device; `description` as `prepare` wrote it.

    On the CPU the pixels are memory-mapped: opening costs nothing, and a batch reads only its own photos.
    """

    pixels: Tensor
    labels: Tensor
    description: dict

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        return self.pixels.device

    def images(self, rows: Tensor, augment: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The photos at `rows`, normalised: float32 [len(rows), 3, size, size], channels_last in memory.

        `augment` maps one uint8 photo [3, size, size] to another, all of them to the same size.
        """
        pixels = self.pixels[rows].permute(0, 3, 1, 2)
        if augment:
            pixels = torch.stack([augment(photo) for photo in pixels]).contiguous(memory_format=torch.channels_last)
        return normalise(pixels)

    def part(self, rows: slice) -> "PackedSplit":
        """Some of the photos; nothing is copied."""
        return PackedSplit(self.pixels[rows], self.labels[rows], self.description)


def normalise(pixels: Tensor) -> Tensor:
    """uint8 RGB [N, 3, height, width] as networks expect it: float32, by ImageNet's mean and standard deviation."""
    mean, std = _mean_and_std(pixels.device)
    return pixels.float().sub_(mean).div_(std)


@functools.cache  # once on each device: to copy them there for every batch makes a GPU wait
def _mean_and_std(device: torch.device) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(value, device=device).view(3, 1, 1) for value in (IMAGENET_MEAN, IMAGENET_STD))
    return 255 * mean, 255 * std


def open_split(path: Path, device: torch.device) -> PackedSplit:
    """Open a split that `prepare` wrote; on a GPU all its pixels move there, once. Raises UserError."""
    try:
        with safe_open(path, framework="pt") as file:
            pixels, labels = file.get_tensor("pixels"), file.get_tensor("labels")
            description = json.loads(file.metadata()["description"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); `dvc repro prepare` writes it") from None
    return PackedSplit(pixels.to(device), labels.long().to(device), description)
