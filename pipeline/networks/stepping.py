"""The training step: forward, loss, backward, optimizer and learning rate; as a graph on a CUDA GPU."""

import sys
import warnings
from collections.abc import Sequence
from typing import NamedTuple

from pipeline.core.errors import UserError, first_line
from pipeline.core.sections.train import Train
from pipeline.networks.compute import autocast
from pipeline.networks.freezing import set_trainable

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, StepLR

WARM_UP_STEPS = 3  # before a step is captured, so that the optimizer and the libraries have allocated what they need


class Note(NamedTuple):
    """How training went until a step, which is counted from 1 in each epoch."""

    step: int
    mean_loss: float  # of all steps of the epoch so far
    loss: float  # mean since the note before
    accuracy: float  # likewise
    lr: float  # the head's, in this step


class TrainingStep:
    """Trains a network with one batch at a time, always of the same shape.

    With `as_graph`, WARM_UP_STEPS steps run kernel by kernel, and from then on a CUDA graph of the whole step is
    replayed, because small kernels take longer to launch than to run. The results are the same. Without `as_graph`,
    which may also be set to False later, every step runs kernel by kernel. It follows
    https://docs.pytorch.org/docs/stable/notes/cuda.html#whole-network-capture
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: LRScheduler,
        label_smoothing: float,
        class_weights: Tensor | None,
        dtype: torch.dtype,
        as_graph: bool,
    ) -> None:
        """`class_weights` float32 [classes], on the network's device, are those of the photos in the loss."""
        self.optimizer, self.scheduler = optimizer, scheduler
        self._network, self._dtype = network, dtype
        reduction = "mean" if class_weights is None else "none"
        self._criterion = nn.CrossEntropyLoss(label_smoothing=label_smoothing, reduction=reduction)
        self._class_weights = class_weights
        self._device = next(network.parameters()).device
        self._totals = torch.zeros(2, device=self._device)  # loss and accuracy; a graph adds to it in each replay
        self._count = 0
        self._notes: list[tuple[int, Tensor, float | Tensor]] = []
        self._last_sums = np.zeros(3)  # of the last note that was read: count, loss and accuracy
        self.as_graph, self._warm_up_steps = as_graph, WARM_UP_STEPS
        if as_graph:
            self._warm_up_stream = torch.cuda.Stream()
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, images: Tensor, labels: Tensor, note: bool = False) -> None:
        """Take one step with float32 images [N, 3, size, size] and int64 labels [N] on the network's device.

        With `note`, it is noted for `read_notes`, on the device, without waiting for it.
        """
        rate = self.optimizer.param_groups[0]["lr"]  # the head's
        if note and isinstance(rate, Tensor):
            rate = rate.clone()  # the scheduler changes it in place
        if not self.as_graph:
            self._compute(images, labels)
        elif self._warm_up_steps:
            self._warm_up_steps -= 1
            self._warm_up(images, labels)
        else:
            self._capture_and_replay(images, labels)
        self._count += 1
        if note:
            self._notes.append((self._count, self._totals.clone(), rate))
        self.scheduler.step()

    def read_notes(self) -> list[Note]:
        """The notes since the last call; waits until the device has computed them."""
        if not self._notes:
            return []
        counts, totals, rates = zip(*self._notes, strict=True)
        self._notes = []
        rates = torch.stack(rates).tolist() if isinstance(rates[0], Tensor) else rates
        sums = np.vstack([self._last_sums, np.column_stack([counts, torch.stack(totals).cpu().double()])])
        self._last_sums = sums[-1]
        since = np.diff(sums, axis=0)
        means = np.column_stack([sums[1:, 1] / sums[1:, 0], since[:, 1:] / since[:, :1]])
        return [
            Note(count, mean_loss, loss, accuracy, lr)
            for count, (mean_loss, loss, accuracy), lr in zip(counts, means.tolist(), rates, strict=True)
        ]

    def start_epoch(self) -> None:
        """Count the steps, and average the losses, from here on."""
        self._totals.zero_()
        self._count, self._last_sums = 0, np.zeros(3)

    def _compute(self, images: Tensor, labels: Tensor) -> None:
        with autocast(self._device, self._dtype):
            logits = self._network(images)
        loss = self._criterion(logits, labels)
        if self._class_weights is not None:  # not CrossEntropyLoss's, which divide by the sum of the batch's weights
            loss = (loss * self._class_weights[labels]).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
        self._totals += torch.stack([loss.detach(), accuracy])

    def _warm_up(self, images: Tensor, labels: Tensor) -> None:
        """Compute on another stream, as a capture does: autograd remembers the stream on which it made a gradient."""
        current = torch.cuda.current_stream()
        self._warm_up_stream.wait_stream(current)
        with torch.cuda.stream(self._warm_up_stream), warnings.catch_warnings(action="ignore"):
            self._compute(images, labels)  # PyTorch warns that a `capturable` optimizer is slower without a graph
        current.wait_stream(self._warm_up_stream)

    def _capture_and_replay(self, images: Tensor, labels: Tensor) -> None:
        """Replay the graph, which is captured first. A step that cannot be captured runs kernel by kernel."""
        if self._graph is None:
            try:
                self._capture(images, labels)
            except RuntimeError as error:  # for example, an operation that waits for the GPU
                print(f"warning: training without a CUDA graph, which is slower: {first_line(error)}", file=sys.stderr)
                self.as_graph = False
                self._compute(images, labels)
                return
        self._images.copy_(images)
        self._labels.copy_(labels)
        self._graph.replay()  # pyrefly: ignore[missing-attribute]

    def _capture(self, images: Tensor, labels: Tensor) -> None:
        """Record a step without running it. A replay reads its batch from `_images` and `_labels`."""
        self._images, self._labels = torch.empty_like(images), torch.empty_like(labels)
        self._graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad()  # the gradients of the warm-up are not part of the graph
        # thread_local, because another thread may be reading photos ahead and allocate memory for them.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._compute(self._images, self._labels)


def make_optimizer(network: nn.Module, name: str, lr: float, params: Train, as_graph: bool) -> torch.optim.Optimizer:
    """Freeze everything except the head, which trains at lr, and train.layers, at lr * train.backbone_lr_factor.

    `as_graph` is that of TrainingStep. Raises UserError if train.layers is batchnorm and the network has no BatchNorm
    layers.
    """
    head, backbone = set_trainable(network, params.layers)
    if params.layers == "batchnorm" and not backbone:
        raise UserError(
            f"params.yaml: {params.key('layers')} is batchnorm, but {name} has no BatchNorm layers; expected head, "
            "last_half or all"
        )
    groups = [{"params": head, "lr": lr}, {"params": backbone, "lr": lr * params.backbone_lr_factor}]
    device = head[0].device
    if as_graph:  # the graph reads the rates from these tensors
        groups = [{**group, "lr": torch.tensor(group["lr"], device=device)} for group in groups]
    fused = True if device.type == "cuda" else None
    if params.optimizer == "adam":
        return torch.optim.Adam(groups, fused=fused, capturable=as_graph)
    return torch.optim.SGD(groups, momentum=params.momentum, fused=fused)


def keep_rate_tensors(optimizer: torch.optim.Optimizer, rates: Sequence[float | Tensor]) -> None:
    """After an optimizer has loaded a state, put its rates back into `rates`, the tensors that a graph reads."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if isinstance(rate, Tensor):
            group["lr"] = rate.copy_(group["lr"])


def make_scheduler(params: Train, optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
    """The learning rate schedule: step it once per batch; `steps` is the number of batches per epoch."""
    if params.lr_schedule == "one_cycle":
        peaks = [float(group["lr"]) for group in optimizer.param_groups]
        # + 1 because total_steps counts learning rates: one before the first step, and one after each step.
        return OneCycleLR(optimizer, peaks, total_steps=params.epochs * steps + 1, cycle_momentum=False)
    # If lr_step_size is null, the first change would come after the last epoch.
    return StepLR(optimizer, (params.lr_step_size or params.epochs + 1) * steps, params.lr_gamma)
