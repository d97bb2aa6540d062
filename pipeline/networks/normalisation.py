"""How networks expect the values of an image: with the mean and standard deviation that they were pretrained with."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Normalisation:
    """A mean and standard deviation of each channel, of RGB values from 0 to 1; ImageNet's are those of torchvision."""

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalise uint8 RGB [N, 3, height, width], to float32."""
        mean, std = _of_bytes(self, pixels.device)
        return pixels.float().sub_(mean).div_(std)

    @classmethod
    def of(cls, description: Mapping[str, Any]) -> "Normalisation":
        """What a model's description says; models of earlier versions say nothing, and are torchvision's."""
        return cls(*(tuple(description[key]) for key in ("mean", "std"))) if "mean" in description else cls()


IMAGENET = Normalisation()


@functools.cache  # once per device: copying them for every batch would stall a GPU
def _of_bytes(normalisation: Normalisation, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of values from 0 to 255, float32 [3, 1, 1] each."""
    mean, std = (torch.tensor(value, device=device).view(3, 1, 1) for value in (normalisation.mean, normalisation.std))
    return 255 * mean, 255 * std
