"""Inference: apply test-time flip, and run a network over a split."""

import time
from collections.abc import Iterable, Mapping

from pipeline.networks.building import head_name
from pipeline.networks.compute import autocast, to_device
from pipeline.networks.dataset import Augment, PackedSplit
from pipeline.networks.folding import fold_batchnorm

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

INFERENCE_BATCH_SIZE = 64  # on a CPU
GPU_INFERENCE_BATCH_SIZE = 256  # with fewer, an H100 waits for kernels: with 64, resnet34 runs at 15,100 images/s


class TestTimeFlip(nn.Module):
    """Averages a network's logits for images and for their mirror images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return (self.network(images) + self.network(images.flip(-1))) / 2


def ready_to_predict(network: nn.Module, test_time_flip: bool, device: torch.device) -> nn.Module:
    """Make a trained network ready for inference: BatchNorm folded, on `device`, with test-time flip if asked for."""
    network = to_device(fold_batchnorm(network), device)
    return TestTimeFlip(network) if test_time_flip else network


def inference_batch_size(device: torch.device) -> int:
    """The batch size of inference; fixed for each kind of device, because other sizes give different bits."""
    return INFERENCE_BATCH_SIZE if device.type == "cpu" else GPU_INFERENCE_BATCH_SIZE


@torch.inference_mode()
def warm_up(network: nn.Module, splits: Iterable[PackedSplit], dtype: torch.dtype) -> None:
    """On an accelerator, run a network on a batch of zeros, and wait until `splits` have been copied there.

    Loading libraries and kernels takes as long as thousands of photos; the splits are copied in the meantime.
    """
    for packed in splits:
        device, size = packed.device, packed.description["image_size"]
        if device.type != "cpu":
            images = torch.zeros(inference_batch_size(device), 3, size, size, device=device)
            with autocast(device, dtype):
                network.eval()(images.contiguous(memory_format=torch.channels_last))
            packed.wait()
            torch.accelerator.synchronize(device)


def predict_splits(
    name: str, network: nn.Module, splits: Mapping[str, PackedSplit], test_time_flip: bool, dtype: torch.dtype
) -> dict[str, np.ndarray]:
    """A trained network's logits of the photos of each split, float32 [N, classes]; prints its images/s."""
    device = next(iter(splits.values())).device
    ready = ready_to_predict(network, test_time_flip, device)
    warm_up(ready, splits.values(), dtype)
    start = time.perf_counter()
    logits = {split: predict_logits(ready, of, dtype, f"{name} {split}").numpy() for split, of in splits.items()}
    photos = sum(map(len, logits.values()))
    print(f"{name}: {photos / (time.perf_counter() - start):.1f} images/s", flush=True)
    return logits


def predict_features(
    network: nn.Module, packed: PackedSplit, dtype: torch.dtype, title: str, augment: Augment | None = None
) -> Tensor:
    """Like `predict_logits`, but return the head's input, float32 [N, features] on the CPU."""
    name = head_name(network)
    head = network.get_submodule(name)
    network.set_submodule(name, nn.Identity())
    try:
        return predict_logits(fold_batchnorm(network), packed, dtype, title, augment)
    finally:
        network.set_submodule(name, head)


@torch.inference_mode()
def predict_logits(
    network: nn.Module, packed: PackedSplit, dtype: torch.dtype, title: str, augment: Augment | None = None
) -> Tensor:
    """Return the logits of every photo, float32 [N, classes] on the CPU. Leaves the network in eval mode.

    `title` labels the progress bar; `augment` is that of `PackedSplit.batches`.
    """
    network.eval()
    logits = []
    with tqdm(total=len(packed), desc=title, unit=" images", disable=None, leave=False) as bar:
        batches = torch.arange(len(packed), device=packed.pixels.device).split(inference_batch_size(packed.device))
        for images in packed.batches(batches, augment):
            with autocast(packed.device, dtype):
                logits.append(network(images).float())
            bar.update(len(images))
    return torch.cat(logits).cpu()
