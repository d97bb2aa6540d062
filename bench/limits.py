"""How fast this device can train and run a network: one step, repeated on a batch that stays on the device."""

import time
from collections.abc import Callable

from pipeline.core.all_params import Params
from pipeline.networks.compute import autocast
from pipeline.networks.dataset import PackedSplit
from pipeline.networks.distributed import Processes
from pipeline.networks.live import LiveTables
from pipeline.networks.predicting import inference_batch_size, ready_to_predict
from pipeline.networks.training import Training, make_network

import torch
from torch import Tensor

WARM_UP_STEPS, MEASURED_S = 5, 2.0
MAX_EPOCHS = 1_000_000  # for the schedule; more than are ever measured
COMPARED_STEPS = 20


def training_limit(name: str, params: Params, train: PackedSplit, dtype: torch.dtype) -> float:
    """Images per second of train.py's training step, without augmentation."""
    training = new_training(name, params, train, dtype)
    images, labels = training_batch(params, train)
    return len(images) * repeat(lambda: training.step(images, labels), train.device)


def difference_of_graph(name: str, params: Params, train: PackedSplit, dtype: torch.dtype) -> float:
    """The largest difference in weights after COMPARED_STEPS with a CUDA graph and kernel by kernel; usually 0."""
    weights = []
    for as_graph in (True, False):
        training = new_training(name, params, train, dtype)
        training.step.as_graph = as_graph
        torch.manual_seed(1)  # for dropout
        for _ in range(COMPARED_STEPS):
            training.step(*training_batch(params, train))
        weights.append([tensor.double() for tensor in training.network.state_dict().values()])
    return max((one - other).abs().max().item() for one, other in zip(*weights, strict=True))


def new_training(name: str, params: Params, train: PackedSplit, dtype: torch.dtype) -> Training:
    """train.py's training run, before its first step; from random weights, which are as fast as any."""
    settings = params.train.model_copy(update={"head_init": "random", "epochs": MAX_EPOCHS})
    training = Training(
        name, "none", params.lr, settings, train, train, dtype, Processes(rank=0, count=1), LiveTables()
    )
    training.start(None)
    return training


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
    network = make_network(name, "none", params.train, train)
    network = ready_to_predict(network, params.evaluate.test_time_flip, device).eval()
    images = train.images(torch.arange(min(inference_batch_size(device), len(train)), device=train.pixels.device))

    def step() -> None:
        with autocast(device, dtype):
            network(images)

    return len(images) * repeat(step, device)


def repeat(step: Callable[[], None], device: torch.device) -> float:
    """Steps per second at best, after a warm-up and in about MEASURED_S seconds."""
    at_once = 1 if device.type == "cpu" else 20  # waiting after every step would leave a GPU idle
    for _ in range(WARM_UP_STEPS):
        step()
    wait_for(device)
    seconds: list[float] = []
    while sum(seconds) < MEASURED_S:
        start = time.perf_counter()
        for _ in range(at_once):
            step()
        wait_for(device)
        seconds.append(time.perf_counter() - start)
    return at_once / min(seconds)


def wait_for(device: torch.device) -> None:
    """Wait until the device has finished all steps."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
