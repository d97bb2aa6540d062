"""Train one of torchvision's networks and keep its best epoch.

Reads data/prepared/{train,validation}.safetensors; writes models/networks/NETWORK.safetensors,
metrics/train/NETWORK.json and metrics/curves/NETWORK.csv. During training, models/networks/NETWORK.checkpoint holds the
state that an interrupted run resumes from.
On several GPUs: torchrun --standalone --nproc-per-node 4 stages/train.py NETWORK
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

import math
import time

from pipeline.core.command_line import ArgumentParser
from pipeline.core.errors import UserError
from pipeline.core.files import atomic_write, require_files, write_json
from pipeline.core.params import Device, LearningRate, Networks, Precision, Section, Threads, find_weights
from pipeline.core.paths import checkpoint_file, learning_curve, model, packed_split, train_scores
from pipeline.core.process import check_first, run_stage
from pipeline.core.read_params import read_params
from pipeline.core.sections.train import Train


class Params(Section):
    """What this stage reads of params.yaml."""

    lr: LearningRate
    device: Device
    precision: Precision
    threads: Threads
    networks: Networks
    train: Train


def read_inputs() -> tuple[str, Params]:
    """The network's name and the params. Raises UserError if they are wrong, or if an input is missing."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("network", metavar="NETWORK", help="one of the networks in params.yaml, such as resnet18")
    name = parser.parse_args().network
    params = read_params(Params)
    if name not in params.networks:
        raise UserError(f"{name} is not under networks in params.yaml; expected one of {', '.join(params.networks)}")
    require_files(packed_split("train"), packed_split("validation"))
    find_weights(name, params.networks[name].weights)
    return name, params


if __name__ == "__main__":
    check_first(read_inputs)

from pipeline.networks.augmentation import Augmentation
from pipeline.networks.building import build_network, check_image_size
from pipeline.networks.checkpoint import Checkpoint
from pipeline.networks.compute import dtype_name, set_up
from pipeline.networks.dataset import PackedSplit, open_split
from pipeline.networks.distributed import Processes, process_group
from pipeline.networks.fitting import fit_head
from pipeline.networks.folding import fold_batchnorm, fold_frozen_batchnorm
from pipeline.networks.freezing import set_training
from pipeline.networks.models import save_model
from pipeline.networks.predicting import predict_logits
from pipeline.networks.selection import best_epoch, calibrated_loss, describe_scores, explain_choice, find_trouble
from pipeline.networks.stepping import TrainingStep, keep_rate_tensors, make_optimizer, make_scheduler

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

LOSS_CHECK_INTERVAL = 20  # steps on a CPU, and ...
LOSS_CHECK_INTERVAL_ON_GPU = 200  # ... on a GPU, which is idle while its loss is read


def main() -> None:
    name, params = read_inputs()
    device, dtype = set_up(params.device, params.precision, params.threads)
    with process_group(device) as processes:
        train_network(name, params, device, dtype, processes)


def train_network(name: str, params: Params, device: torch.device, dtype: torch.dtype, processes: Processes) -> None:
    """Train, validate after each epoch, and write the best epoch's model and scores and the learning curve.

    Epoch 0, which takes no step, is the fitted head.
    """
    files = [packed_split(split) for split in ("train", "validation")]
    train, validation = (open_split(file, device) for file in files)
    check_batch_size(params.train.batch_size, train, processes)
    settings = {
        "weights": params.networks[name].weights,
        "lr": params.lr,
        "precision": str(dtype),
        "processes": processes.count,
        **params.train.model_dump(exclude={"launcher"}),
    }
    processes.check_agreement([name, settings, train.description])
    processes.report(
        f"{name}: {len(train)} photos, epochs: {params.train.epochs}, {dtype_name(dtype)} on "
        f"{device.type}" + (f", {processes.count} processes" if processes.count > 1 else "")
    )
    if settings["weights"] == "none" and (params.train.layers, params.train.batchnorm_statistics) != ("all", "updated"):
        processes.report(
            f"note: networks.{name}.weights is none, so part of the network stays random; set train.layers to all and "
            "train.batchnorm_statistics to updated"
        )
    training = Training(name, params, train, validation, dtype, processes)
    checkpoint = Checkpoint(checkpoint_file(name), settings, files, Path(__file__), device)
    if state := processes.broadcast(checkpoint.load() if processes.is_first else None):
        training.load_state_dict(state)
        processes.report(f"{name}: resuming after epoch {training.last_epoch}")
    fits_head = params.train.head_init == "fitted" and not state
    start = time.perf_counter()
    if fits_head:
        processes.report(f"{name}: fitting the head to the pretrained network's features")
        loss = training.fit_head() if processes.is_first else None
    step = training.make_step()  # copies rank 0's head to the other processes
    if fits_head:
        processes.report(training.finish_epoch(0, start, lr=0.0, loss=processes.broadcast(loss)))
    for epoch in range(training.last_epoch + 1, params.train.epochs + 1):
        result = training.run_epoch(epoch, step)
        if processes.is_first:
            checkpoint.save(training.state_dict())
        processes.report(result)  # only now, because a run that is interrupted from here on resumes after this epoch
    if processes.is_first:
        write_results(training)
        checkpoint.delete()
    choice = explain_choice(training.curve, len(train.description["classes"]), params.train, params.lr)
    processes.report(f"{name}: {choice}")


class Training:
    """A training run of one network: its inputs, and the state it keeps from epoch to epoch.

    `curve` holds the scores of each epoch so far, `best_weights` the state_dict of the best one.
    """

    def __init__(
        self,
        name: str,
        params: Params,
        train: PackedSplit,
        validation: PackedSplit,
        dtype: torch.dtype,
        processes: Processes,
    ) -> None:
        self.name, self.params = name, params.train
        self.train, self.validation = train, validation
        self.dtype, self.processes = dtype, processes
        self.network = make_network(name, params, train, processes)
        self.as_graph = train.device.type == "cuda" and processes.count == 1
        self.optimizer = make_optimizer(self.network, name, params.lr, params.train, self.as_graph)
        self.steps = len(train) // self.params.batch_size  # in an epoch; the last partial batch is dropped
        self.scheduler = make_scheduler(self.params, self.optimizer, self.steps)
        self.augment = make_augmentation(self.params, train.description["image_size"], self.params.image_size)
        self.curve: list[dict] = []
        self.best_weights: dict[str, Tensor] = {}

    def fit_head(self) -> float:
        """Fit the head to photos and their augmented views, both of the prepared size, as in inference."""
        torch.manual_seed(self.params.seed * 1000)
        augment = make_augmentation(self.params, self.train.description["image_size"])
        return fit_head(self.network, self.train, augment, self.dtype, f"{self.name} features")

    def make_step(self) -> TrainingStep:
        """The step that trains on a batch, in all processes. Call it when the network has its initial weights."""
        set_training(self.network, self.params.layers, self.params.batchnorm_statistics)
        if self.as_graph:
            network = fold_frozen_batchnorm(self.network)
        else:
            network = self.processes.parallel(self.network, self.train.device)
        return TrainingStep(
            network, self.optimizer, self.scheduler, self.params.label_smoothing, self.dtype, self.as_graph
        )

    def run_epoch(self, epoch: int, step: TrainingStep) -> str:
        """Train one epoch and finish it; return its result as text."""
        title = f"{self.name} epoch {epoch}"
        batches = self.shuffle(epoch)
        lr = float(self.scheduler.get_last_lr()[0])  # the head's
        set_training(self.network, self.params.layers, self.params.batchnorm_statistics)
        start = time.perf_counter()
        loss = self.train_batches(step, batches, title)
        loss = self.processes.all_gather(torch.tensor([loss])).mean().item()
        rate = self.steps * self.params.batch_size / (time.perf_counter() - start)
        self.processes.broadcast_buffers(self.network)
        return self.finish_epoch(epoch, start, lr, loss, f"{rate:.1f} images/s, ")

    def finish_epoch(self, epoch: int, start: float, lr: float, loss: float, rate: str = "") -> str:
        """Validate, keep the weights if they are the best so far, and return the epoch's result as text.

        The epoch began at `start`.
        """
        scores = {"epoch": epoch, "lr": lr, "train_loss": round(loss, 6), **self.validate()}
        self.curve.append(scores)
        if best_epoch(self.curve, self.params) is scores:
            self.best_weights = {key: tensor.clone() for key, tensor in self.network.state_dict().items()}
        seconds = time.perf_counter() - start
        left = (self.params.epochs - epoch) * seconds if epoch else 0
        trouble = find_trouble(self.curve, len(self.train.description["classes"]))
        return (
            f"{self.name} epoch {epoch}/{self.params.epochs}: train loss {scores['train_loss']:.4f}, "
            f"{describe_scores(scores)}, {rate}{describe_duration(seconds)}"
            + (f", about {describe_duration(left)} left" if left else "")
            + (f"\nwarning: {self.name} epoch {epoch}: {trouble}" if trouble else "")
        )

    @property
    def last_epoch(self) -> int:
        """The last epoch that was finished, 0 if none was."""
        return self.curve[-1]["epoch"] if self.curve else 0

    def shuffle(self, epoch: int) -> list[Tensor]:
        """This process's shard of every batch, as rows of train. The order depends only on the seed and the epoch."""
        seed = self.params.seed * 1000 + epoch
        torch.manual_seed(seed)
        order = torch.randperm(len(self.train)).to(self.train.pixels.device)  # the same in every process
        self.processes.seed(seed)  # different dropout and augmentation in each process
        batches = order[: self.steps * self.params.batch_size].split(self.params.batch_size)
        return [self.processes.shard(rows) for rows in batches]

    def train_batches(self, step: TrainingStep, batches: list[Tensor], title: str) -> float:
        """Take one step per batch and return the mean loss. Raises UserError if the loss is not finite."""
        interval = LOSS_CHECK_INTERVAL if self.train.device.type == "cpu" else LOSS_CHECK_INTERVAL_ON_GPU
        step.reset_loss()
        with tqdm(total=sum(map(len, batches)), desc=title, unit=" images", disable=None) as bar:
            images_of = self.train.batches(batches, self.augment)
            for number, (rows, images) in enumerate(zip(batches, images_of, strict=True), start=1):
                step(images, self.train.labels[rows])
                if number % interval == 0 or number == len(batches):
                    mean_loss = require_finite(step.read_loss() / number, f"{title}, step {number}")
                    bar.set_postfix(loss=f"{mean_loss:.4f}")
                bar.update(len(rows))
        return mean_loss

    def validate(self) -> dict:
        """Return the network's losses and accuracy on validation, over all processes' shards, as columns of the curve.

        `validation_loss` is the log loss and `validation_calibrated_loss` that of `calibrated_loss`, both in nats.
        Leaves the network in eval mode. Raises UserError if the loss is not finite.
        """
        title = f"{self.name} validation"
        shard = self.validation.part(slice(self.processes.rank, None, self.processes.count))
        logits = predict_logits(fold_batchnorm(self.network), shard, self.dtype, title)
        logits, labels = self.processes.all_gather(logits), self.validation.labels.cpu()
        loss = require_finite(nn.functional.cross_entropy(logits, labels).item(), title)
        accuracy = (logits.argmax(1) == labels).double().mean().item()
        return {
            "validation_loss": round(loss, 6),
            "validation_calibrated_loss": round(calibrated_loss(logits, labels), 6),
            "validation_accuracy": round(accuracy, 6),
        }

    def state_dict(self) -> dict:
        parts = {key: getattr(self, key).state_dict() for key in ("network", "optimizer", "scheduler")}
        return {**parts, "curve": self.curve, "best_weights": self.best_weights}

    def load_state_dict(self, state: dict) -> None:
        rates = [group["lr"] for group in self.optimizer.param_groups]
        for key in ("network", "optimizer", "scheduler"):
            getattr(self, key).load_state_dict(state[key])
        keep_rate_tensors(self.optimizer, rates)
        self.curve, self.best_weights = state["curve"], state["best_weights"]


def make_network(name: str, params: Params, train: PackedSplit, processes: Processes) -> nn.Module:
    """Build the network with its pretrained weights and a new head, on train's device.

    Raises UserError if it does not exist, its weights cannot be used, or it cannot take the image sizes.
    """
    weights = params.networks[name].weights if processes.is_first else "none"  # other ranks receive rank 0's weights
    classes = len(train.description["classes"])
    network = build_network(name, weights, classes, params.train.head_width, params.train.dropout, params.train.seed)
    prepared_size = train.description["image_size"]
    check_image_size(network, name, prepared_size, "prepare.image_size")
    check_image_size(network, name, params.train.image_size or prepared_size, "train.image_size")
    return network.to(train.device, memory_format=torch.channels_last)


def make_augmentation(params: Train, prepared_size: int, size: int | None = None) -> Augmentation | None:
    """What makes images of `size` pixels a side (None: as before) from prepared photos; None if they are used as is."""
    size = size or prepared_size
    if params.augment == "none" and size == prepared_size:
        return None
    crop_scale = params.crop_scale if params.augment == "crop_and_flip" else 1.0
    return Augmentation(size, crop_scale, flips=params.augment != "none")


def check_batch_size(batch_size: int, train: PackedSplit, processes: Processes) -> None:
    """Raise UserError if `train` is smaller than a batch, or the processes cannot share one equally."""
    if batch_size > len(train):
        raise UserError(
            f"params.yaml: train.batch_size is {batch_size}; expected at most {len(train)}, the number of photos in "
            "train"
        )
    if batch_size % processes.count:
        raise UserError(
            f"params.yaml: train.batch_size is {batch_size}; expected a multiple of {processes.count}, the number of "
            "processes that share each batch"
        )


def require_finite(loss: float, where: str) -> float:
    """Return `loss`. Raises UserError if it is infinite or NaN."""
    if not math.isfinite(loss):
        raise UserError(f"{where}: the loss is {loss}; try a smaller lr")
    return loss


def describe_duration(seconds: float) -> str:
    """`43 s`, or `12 min` from two minutes on."""
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


def write_results(training: Training) -> None:
    """Write the best epoch's model and scores, and the learning curve."""
    name = training.name
    # Without lr, because `dvc exp show` would show a second column of that name next to the param's.
    best = best_epoch(training.curve, training.params)
    assert best is not None  # a finished training has had an epoch
    curve = [{**scores, "kept": scores is best} for scores in training.curve]
    used = {"threads": torch.get_num_threads()} if training.train.device.type == "cpu" else {}  # to repeat it
    description = {
        "network": name,
        "kept_epoch": best["epoch"],
        "head_width": training.params.head_width,
        "dropout": training.params.dropout,
        **training.train.description,
    }
    with atomic_write() as write_to:
        pd.DataFrame(curve).to_csv(write_to(learning_curve(name)), index=False)
        write_json(
            write_to(train_scores(name)),
            {"kept_epoch" if key == "epoch" else key: value for key, value in best.items() if key != "lr"} | used,
        )
        weights = {key: tensor.cpu() for key, tensor in training.best_weights.items()}
        save_model(write_to(model(name)), weights, description)


if __name__ == "__main__":
    run_stage(main)
