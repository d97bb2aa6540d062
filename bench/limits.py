"""How fast this device can train and run a network: one step, repeated on a batch that stays on the device."""

import time
from collections.abc import Callable

from pipeline.core.all_params import Params
from pipeline.networks.building import build_network
from pipeline.networks.compute import autocast
from pipeline.networks.dataset import PackedSplit
from pipeline.networks.folding import fold_frozen_batchnorm
from pipeline.networks.freezing import set_training
from pipeline.networks.predicting import inference_batch_size, ready_to_predict
from pipeline.networks.stepping import TrainingStep, make_optimizer, make_scheduler

import torch
from torch import Tensor, nn

WARM_UP_STEPS, MEASURED_S = 5, 2.0
MAX_STEPS = 1_000_000  # for the schedule; more than are ever measured
COMPARED_STEPS = 20


def training_limit(name: str, params: Params, train: PackedSplit, dtype: torch.dtype) -> float:
    """Images per second of train.py's training step, without augmentation."""
    network = new_network(name, params, train)
    step = training_step(network, name, params, train, dtype, as_graph=train.device.type == "cuda")
    images, labels = training_batch(params, train)
    return len(images) * repeat(lambda: step(images, labels), train.device)


def difference_of_graph(name: str, params: Params, train: PackedSplit, dtype: torch.dtype) -> float:
    """The largest difference in weights after COMPARED_STEPS with a CUDA graph and kernel by kernel; usually 0."""
    weights = []
    for as_graph in (True, False):
        torch.manual_seed(1)  # for dropout
        network = new_network(name, params, train)
        step = training_step(network, name, params, train, dtype, as_graph)
        for _ in range(COMPARED_STEPS):
            step(*training_batch(params, train))
        weights.append([tensor.double() for tensor in network.state_dict().values()])
    return max((one - other).abs().max().item() for one, other in zip(*weights, strict=True))


def training_step(
    network: nn.Module, name: str, params: Params, train: PackedSplit, dtype: torch.dtype, as_graph: bool
) -> TrainingStep:
    """train.py's training step; `as_graph` needs a CUDA GPU."""
    settings, on_cuda = params.train, train.device.type == "cuda"
    network.to(train.device, memory_format=torch.channels_last)
    optimizer = make_optimizer(network, name, params.lr, settings, as_graph=on_cuda)
    scheduler = make_scheduler(settings, optimizer, MAX_STEPS)
    set_training(network, settings.layers, settings.batchnorm_statistics)
    trained = fold_frozen_batchnorm(network) if on_cuda else network
    return TrainingStep(trained, optimizer, scheduler, settings.label_smoothing, dtype, as_graph)


def training_batch(params: Params, train: PackedSplit) -> tuple[Tensor, Tensor]:
    """Images of the size that train.py trains with, and their labels, on train's device."""
    size = params.train.image_size or params.prepare.image_size
    rows = torch.arange(params.train.batch_size, device=train.device)
    images = train.images(rows.to(train.pixels.device))[..., :size, :size]
    return images.contiguous(memory_format=torch.channels_last), train.labels[rows]


@torch.inference_mode()
def inference_limit(name: str, params: Params, train: PackedSplit, dtype: torch.dtype) -> float:
    """Images per second of evaluate.py's network, BatchNorm folded."""
    device = train.device
    network = ready_to_predict(new_network(name, params, train), params.evaluate.test_time_flip, device).eval()
    images = train.images(torch.arange(min(inference_batch_size(device), len(train)), device=train.pixels.device))

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
