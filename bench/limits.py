"""How fast this device can train and run a network: one step, repeated on a batch that stays on the device."""

import time
from collections.abc import Callable

from pipeline.core.params import Params
from pipeline.networks.building import build_network
from pipeline.networks.compute import autocast
from pipeline.networks.dataset import PackedSplit
from pipeline.networks.freezing import set_trainable, set_training
from pipeline.networks.predicting import INFERENCE_BATCH_SIZE, ready_to_predict

import torch
from torch import nn

WARM_UP_STEPS, MEASURED_S = 3, 2.0


def training_limit(name: str, params: Params, train: PackedSplit, dtype: torch.dtype) -> float:
    """Images per second of train.py's training step, without augmentation."""
    recipe, device = params.train, train.device
    network = new_network(name, params, train).to(device, memory_format=torch.channels_last)
    head, body = set_trainable(network, recipe.layers)
    set_training(network, recipe.layers, recipe.batchnorm_statistics)
    if recipe.optimizer == "adam":
        optimizer = torch.optim.Adam(head + body, params.lr)
    else:
        optimizer = torch.optim.SGD(head + body, params.lr, recipe.momentum)
    criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    size = recipe.image_size or params.prepare.image_size
    rows = torch.arange(recipe.batch_size, device=device)
    images, labels = train.images(rows.to(train.pixels.device)), train.labels[rows]
    images = images[..., :size, :size].contiguous(memory_format=torch.channels_last)

    def step() -> None:
        with autocast(device, dtype):
            logits = network(images)
        loss = criterion(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return len(images) * repeat(step, device)


@torch.inference_mode()
def inference_limit(name: str, params: Params, train: PackedSplit, dtype: torch.dtype) -> float:
    """Images per second of evaluate.py's network, BatchNorm folded."""
    device = train.device
    network = ready_to_predict(new_network(name, params, train), params.evaluate.test_time_flip, device).eval()
    images = train.images(torch.arange(min(INFERENCE_BATCH_SIZE, len(train)), device=train.pixels.device))

    def step() -> None:
        with autocast(device, dtype):
            network(images)

    return len(images) * repeat(step, device)


def new_network(name: str, params: Params, train: PackedSplit) -> nn.Module:
    """The network that train.py builds, with random weights, which are as fast as any."""
    classes = len(train.description["classes"])
    return build_network(name, "none", classes, params.train.head_width, params.train.dropout, seed=1)


def repeat(step: Callable[[], None], device: torch.device) -> float:
    """Steps per second at best, after a warm-up and in about MEASURED_S seconds."""
    at_once = 1 if device.type == "cpu" else 20  # waiting after every step would leave a GPU idle
    for _ in range(WARM_UP_STEPS):
        step()
    synchronize(device)
    seconds: list[float] = []
    while sum(seconds) < MEASURED_S:
        start = time.perf_counter()
        for _ in range(at_once):
            step()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return at_once / min(seconds)


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all steps."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
