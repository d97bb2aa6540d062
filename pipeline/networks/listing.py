"""What there is to choose a network by: its size, its speed on this computer, and its accuracy on ImageNet."""

import fnmatch
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.core.errors import UserError
from pipeline.networks.building import bare_network, output_name
from pipeline.networks.compute import autocast, to_device
from pipeline.networks.folding import fold_batchnorm
from pipeline.networks.from_timm import is_timms, timms_names, timms_weights

import torch
from torch import nn
from torchvision import models

MEASURED_S = 0.3  # of inference, per network
IMAGES = 8  # in a batch


@dataclass(frozen=True)
class Entry:
    """A network that params.yaml can name."""

    name: str
    parameters: int  # without those of its output layer, which is replaced
    images_per_s: float | None  # in inference here; None if it cannot take images of this size
    weights: dict[str, float | None]  # by name: ImageNet's top-1 accuracy in %, if the package knows it


def matching_names(patterns: Sequence[str]) -> list[str]:
    """The networks that match one of the shell patterns, or torchvision's if there are none.

    torchvision's come first, those with the least arithmetic before the others; timm's match only patterns that begin
    with `timm/`. Raises UserError for a pattern that matches nothing.
    """
    names = models.list_models(module=models) + (timms_names() if any(map(is_timms, patterns)) else [])
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise UserError(f"no network matches {pattern}; expected a name such as resnet18, or 'resnet*'")
    matching = [name for name in names if not patterns or any(fnmatch.fnmatch(name, of) for of in patterns)]
    return sorted(matching, key=lambda name: (is_timms(name), _operations(name), name))


def entries(names: Sequence[str], size: int, device: torch.device, dtype: torch.dtype) -> Iterator[Entry]:
    """An entry per network, each as soon as its speed is measured with images of `size` pixels a side."""
    for name in names:
        network = bare_network(name)
        head = {*network.get_submodule(output_name(network)).parameters()}
        parameters = sum(parameter.numel() for parameter in network.parameters() if parameter not in head)
        network = to_device(fold_batchnorm(network), device)
        try:
            rate = images_per_s(network, size, device, dtype)
        except (RuntimeError, AssertionError, ValueError):
            rate = None
        yield Entry(name, parameters, rate, accuracies(name))


@torch.inference_mode()
def images_per_s(network: nn.Module, size: int, device: torch.device, dtype: torch.dtype) -> float:
    """The rate of inference in batches of IMAGES; for a network that is too slow for that, one by one."""

    def seconds(count: int) -> float:
        images = torch.zeros(count, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
        start = time.perf_counter()
        with autocast(device, dtype):
            network(images).float().cpu()  # waits for a GPU
        return time.perf_counter() - start

    seconds(1)  # allocates memory, loads kernels
    if (single := seconds(1)) * IMAGES > MEASURED_S:
        return 1 / single
    seconds(IMAGES)
    times = [seconds(IMAGES)]
    while sum(times) < MEASURED_S:
        times.append(seconds(IMAGES))
    return IMAGES / min(times)


def accuracies(name: str) -> dict[str, float | None]:
    """The network's pretrained weights with their top-1 accuracy on ImageNet in %, which timm's package lacks."""
    if is_timms(name):
        return dict.fromkeys(timms_weights(name))
    return {entry.name: entry.meta["_metrics"]["ImageNet-1K"]["acc@1"] for entry in models.get_model_weights(name)}


def _operations(name: str) -> float:
    """torchvision's count of a network's operations, in 10^9; 0 for timm's, whose package has none."""
    return 0 if is_timms(name) else min(entry.meta["_ops"] for entry in models.get_model_weights(name))
