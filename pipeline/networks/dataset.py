"""Read packed splits and make batches from them."""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import UserError

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

IMAGENET_MEAN = [0.485, 0.456, 0.406]  # of RGB values from 0 to 1, as torchvision's weights expect
IMAGENET_STD = [0.229, 0.224, 0.225]

Augment = Callable[[Tensor], Tensor]  # from a uint8 image [3, size, size] to another one


@dataclass(frozen=True)
class PackedSplit:
    """`pixels` uint8 [N, size, size, 3] and `labels` int64 [N] on one device; `description` as written by `prepare`.

    On the CPU the pixels are memory-mapped: opening takes no time, and a batch reads only its own photos.
    """

    pixels: Tensor
    labels: Tensor
    description: dict

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        return self.pixels.device

    def images(self, rows: Tensor, augment: Augment | None = None) -> Tensor:
        """The photos at `rows`, normalised: float32 [len(rows), 3, size, size] in channels_last format.

        `augment` is applied to each photo; all results must have the same size.
        """
        pixels = self.pixels[rows].permute(0, 3, 1, 2)
        if augment:
            pixels = torch.stack([augment(image) for image in pixels]).contiguous(memory_format=torch.channels_last)
        return normalise(pixels)

    def part(self, rows: slice | Tensor) -> "PackedSplit":
        """The photos in `rows`; a slice does not copy them."""
        return PackedSplit(self.pixels[rows], self.labels[rows], self.description)

    def sample(self, count: int) -> "PackedSplit":
        """The first `count` photos, and the first one of each class that is not among them."""
        labels = self.labels.cpu()
        rows = [torch.arange(min(count, len(labels)))]
        for label in range(len(self.description["classes"])):
            found = (labels == label).nonzero()
            if len(found) and found[0, 0] >= count:
                rows.append(found[0])
        return self.part(torch.cat(rows).to(self.device)) if len(rows) > 1 else self.part(slice(count))


def normalise(pixels: Tensor) -> Tensor:
    """Normalise uint8 RGB [N, 3, height, width] with ImageNet's mean and standard deviation, to float32."""
    mean, std = _mean_and_std(pixels.device)
    return pixels.float().sub_(mean).div_(std)


@functools.cache  # once per device: copying them for every batch would stall a GPU
def _mean_and_std(device: torch.device) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(value, device=device).view(3, 1, 1) for value in (IMAGENET_MEAN, IMAGENET_STD))
    return 255 * mean, 255 * std


def open_split(path: Path, device: torch.device) -> PackedSplit:
    """Open a split written by `prepare`; on a GPU, copy all of it there. Raises UserError if it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            pixels, labels = file.get_tensor("pixels"), file.get_tensor("labels")
            description = json.loads(file.metadata()["description"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); run `dvc repro prepare` to create it") from None
    return PackedSplit(pixels.to(device), labels.long().to(device), description)
