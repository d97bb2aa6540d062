"""Inference: apply test-time flip, and run a network over a split."""

from pipeline.networks.building import head_name
from pipeline.networks.compute import autocast
from pipeline.networks.dataset import Augment, PackedSplit
from pipeline.networks.folding import fold_batchnorm

import torch
from torch import Tensor, nn
from tqdm import tqdm

INFERENCE_BATCH_SIZE = 64


class TestTimeFlip(nn.Module):
    """Averages a network's logits for images and for their mirror images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return (self.network(images) + self.network(images.flip(-1))) / 2


def ready_to_predict(network: nn.Module, test_time_flip: bool, device: torch.device) -> nn.Module:
    """Make a trained network ready for inference: BatchNorm folded, on `device`, with test-time flip if asked for."""
    network = fold_batchnorm(network).to(device, memory_format=torch.channels_last)
    return TestTimeFlip(network) if test_time_flip else network


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
        batches = torch.arange(len(packed), device=packed.pixels.device).split(INFERENCE_BATCH_SIZE)
        for images in packed.batches(batches, augment):
            with autocast(packed.device, dtype):
                logits.append(network(images).float())
            bar.update(len(images))
    return torch.cat(logits).cpu()
