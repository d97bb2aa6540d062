"""Train one network: from the fitted head on, epoch after epoch, with the scores of each on validation."""

import math
import time
from dataclasses import asdict

from pipeline.core.class_sizes import describe_unequal
from pipeline.core.errors import UserError
from pipeline.core.sections.train import Train
from pipeline.networks.augmentation import Augmentation
from pipeline.networks.building import build_network, check_image_size, divide_logits, normalisation_of
from pipeline.networks.compute import to_device
from pipeline.networks.dataset import PackedSplit
from pipeline.networks.distributed import Processes
from pipeline.networks.fitting import fit_head
from pipeline.networks.folding import fold_batchnorm, fold_frozen_batchnorm
from pipeline.networks.freezing import set_training
from pipeline.networks.live import LiveTables
from pipeline.networks.predicting import predict_logits
from pipeline.networks.stepping import Note, TrainingStep, keep_rate_tensors, make_optimizer, make_scheduler
from pipeline.scores.calibration import calibrated_loss, fit_temperature, log_loss
from pipeline.scores.selection import best_scores, describe_loss, describe_scores, find_trouble

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

KEPT_IN_STATE = ("curve", "step_curve", "best_weights", "best_recall", "head_weights")
STEP_ROWS = 500  # of the curve by step, about; then its table is small, however long the training
MEANS = {"3:1": 0.25, "1:1": 0.5, "1:3": 0.75}  # of the fitted head and the last epoch, with the share of the latter
READING_INTERVAL_ON_GPU = 200  # steps; a GPU is idle while its losses are read


class Training:
    """A training run of one network: its inputs, and the state it keeps from epoch to epoch.

    `curve` holds the scores of each epoch so far, `step_curve` the losses in between, `best_weights` the state_dict of
    the best epoch, `best_recall` its recall of each class on validation, and `head_weights` the state_dict of the
    network with the fitted head, before training. Raises UserError if the network does not exist, its weights cannot be
    used, or it cannot take the images' sizes.
    """

    def __init__(
        self,
        name: str,
        weights: str,
        lr: float,
        params: Train,
        train: PackedSplit,
        validation: PackedSplit,
        dtype: torch.dtype,
        processes: Processes,
        live: LiveTables,
    ) -> None:
        self.name, self.params = name, params
        self.normalisation = normalisation_of(name, weights)
        self.train, self.validation = (packed.normalised(self.normalisation) for packed in (train, validation))
        self.dtype, self.processes, self.live = dtype, processes, live
        weights = weights if processes.is_first else "none"  # the other processes get the first one's
        self.network = make_network(name, weights, params, train)
        self.as_graph = train.device.type == "cuda" and processes.count == 1
        self.optimizer = make_optimizer(self.network, name, lr, params, self.as_graph)
        self.steps = len(train) // params.batch_size  # in an epoch; the last partial batch is dropped
        self.scheduler = make_scheduler(params, self.optimizer, self.steps)
        self.class_weights: Tensor | None = None
        self.validation_weights: np.ndarray | None = None  # of each photo
        if params.class_weights == "balanced":
            self.class_weights = train.balanced_weights()
            self.validation_weights = validation.balanced_weights()[validation.labels].double().cpu().numpy()
        self.augment = make_augmentation(params, train.description["image_size"], params.image_size)
        self.noting_interval = math.ceil(params.epochs * self.steps / STEP_ROWS)
        self.curve: list[dict] = []
        self.step_curve: list[dict] = []
        self.means: list[dict] = []  # the scores of means of epoch 0 and the last one
        self.recall: list[float] = []  # of each class, at the last validation
        self.best_weights: dict[str, Tensor] = {}
        self.best_recall: list[float] = []
        self.head_weights: dict[str, Tensor] = {}

    def start(self, state: dict | None) -> None:
        """Resume from the state of an interrupted run; without one, fit the head if train.head_init is fitted.

        The fitted head is epoch 0, before any step.
        """
        start = time.perf_counter()
        fits_head = self.params.head_init == "fitted" and not state
        loss = None  # of the fitted head, in the first process
        if state:
            self.load_state_dict(state)
            self.live.follow(self.curve, self.step_curve)
            self.processes.report(f"{self.name}: resuming after epoch {self.last_epoch}")
        if fits_head:
            self.processes.report(f"{self.name}: fitting the head to the network's features")
            if self.processes.is_first:
                loss = self.fit_head()
        self.step = self.make_step()
        if fits_head:
            self.processes.report(self.finish_epoch(0, start, lr=0.0, loss=self.processes.broadcast(loss)))

    def fit_head(self) -> float:
        """Fit the head to photos and their augmented views, both of the prepared size, as in inference."""
        torch.manual_seed(self.params.seed * 1000)
        augment = make_augmentation(self.params, self.train.description["image_size"])
        balanced = self.class_weights is not None
        return fit_head(self.network, self.train, augment, balanced, self.dtype, f"{self.name} features")

    def make_step(self) -> TrainingStep:
        """The step that trains on a batch, in all processes, which get the first one's weights for the network."""
        set_training(self.network, self.params.layers, self.params.batchnorm_statistics)
        if self.as_graph:
            network = fold_frozen_batchnorm(self.network)
        else:
            network = self.processes.parallel(self.network, self.train.device)
        smoothing, weights = self.params.label_smoothing, self.class_weights
        return TrainingStep(network, self.optimizer, self.scheduler, smoothing, weights, self.dtype, self.as_graph)

    def run_epoch(self, epoch: int) -> str:
        """Train one epoch and finish it; return its result as text."""
        title = f"{self.name} epoch {epoch}"
        batches = self.shuffle(epoch)
        lr = float(self.scheduler.get_last_lr()[0])  # the head's
        set_training(self.network, self.params.layers, self.params.batchnorm_statistics)
        start = time.perf_counter()
        loss = self.train_batches(batches, epoch, title)
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
        self.live.follow(self.curve, self.step_curve)
        if best_scores(self.curve, self.params) is scores:
            self.keep()
        if epoch == 0:
            self.head_weights = self.best_weights
        seconds = time.perf_counter() - start
        left = (self.params.epochs - epoch) * seconds if epoch else 0
        trouble = find_trouble(self.curve, len(self.train.description["classes"]), self.params.key("lr"))
        return (
            f"{self.name} epoch {epoch}/{self.params.epochs}: train loss {describe_loss(scores['train_loss'])}, "
            f"{describe_scores(scores)}, {rate}{describe_duration(seconds)}"
            + (f", about {describe_duration(left)} left" if left else "")
            + (f"\nwarning: {self.name} epoch {epoch}: {trouble}" if trouble else "")
        )

    def finish(self) -> None:
        """Score weighted means of the network with the fitted head and that of the last epoch; keep one if it is best.

        Such a mean is often better than either, because it forgets less of what the pretrained network knows, and the
        fewer photos there are, the more the fitted head should count: Wortsman et al., "Robust fine-tuning of zero-shot
        models", 2022, https://arxiv.org/abs/2109.01903
        """
        if not self.head_weights:
            return
        last_weights = copy_weights(self.network)
        for weighting, share in MEANS.items():
            self.network.load_state_dict(average(self.head_weights, last_weights, share))
            mean = {**self.curve[-1], "epoch": f"0+{self.last_epoch} ({weighting})", **self.validate()}
            self.means.append(mean)
            if best_scores(self.curve, self.params, self.means) is mean:
                self.keep()
            self.processes.report(
                f"{self.name} mean of epochs 0 and {self.last_epoch}, weighted {weighting}: {describe_scores(mean)}"
            )

    def keep(self) -> None:
        """Keep the network's weights and its recall as the best ones."""
        self.best_weights = copy_weights(self.network)
        self.best_recall = self.recall

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

    def train_batches(self, batches: list[Tensor], epoch: int, title: str) -> float:
        """Take one step per batch and return the mean loss. Raises UserError if the loss is not finite."""
        reading_interval = 1 if self.train.device.type == "cpu" else READING_INTERVAL_ON_GPU
        mean_loss = math.nan  # until it is read, at the last step at the latest
        self.step.start_epoch()
        with tqdm(total=sum(map(len, batches)), desc=title, unit=" images", disable=None) as bar:
            images_of = self.train.batches(batches, self.augment)
            for number, (rows, images) in enumerate(zip(batches, images_of, strict=True), start=1):
                is_last = number == len(batches)
                self.step(images, self.train.labels[rows], note=is_last or number % self.noting_interval == 0)
                if (is_last or number % reading_interval == 0) and (notes := self.step.read_notes()):
                    mean_loss = self.require_finite(notes[-1].mean_loss, f"{title}, step {notes[-1].step}")
                    self.add_steps(epoch, notes)
                    bar.set_postfix(loss=f"{mean_loss:.4f}", refresh=False)
                bar.update(len(rows))
        return mean_loss

    def add_steps(self, epoch: int, notes: list[Note]) -> None:
        """Add what was noted, averaged over all processes, to the curve by step."""
        means = self.processes.all_gather(torch.tensor([(note.loss, note.accuracy) for note in notes]).double())
        means = means.view(len(notes), self.processes.count, 2).mean(dim=1).tolist()
        for note, (loss, accuracy) in zip(notes, means, strict=True):
            step = (epoch - 1) * self.steps + note.step
            scores = {"train_loss": round(loss, 6), "train_accuracy": round(accuracy, 6)}
            self.step_curve.append(
                {"step": step, "epoch": round(step / self.steps, 4), "lr": float(f"{note.lr:.6g}"), **scores}
            )
        self.live.follow(self.curve, self.step_curve)

    def validate(self) -> dict:
        """Return the network's losses and accuracy on validation, over all processes' shards, as columns of the curve.

        `validation_loss` is the log loss and `validation_calibrated_loss` that of `calibrated_loss`, both in nats, and
        `temperature` is the one that calibrates the network. With balanced class weights both losses count all classes
        of validation equally, as the train loss does, so that the model that is kept is the best by that measure. Sets
        `recall`. Leaves the network in eval mode. Raises UserError if the loss is not finite.
        """
        title = f"{self.name} validation"
        shard = self.validation.part(slice(self.processes.rank, None, self.processes.count))
        logits = predict_logits(fold_batchnorm(self.network), shard, self.dtype, title)
        logits, labels = self.processes.all_gather(logits).double().numpy(), self.validation.labels.cpu().numpy()
        weights = self.validation_weights
        loss = self.require_finite(log_loss(logits, labels, weights), title)
        is_correct = logits.argmax(axis=1) == labels
        photos, correct = (np.bincount(of, minlength=logits.shape[1]) for of in (labels, labels[is_correct]))
        self.recall = (correct / np.maximum(photos, 1)).tolist()
        accuracy = float(is_correct.mean())
        return {
            "validation_loss": round(loss, 6),
            "validation_calibrated_loss": round(calibrated_loss(logits, labels, weights), 6),
            "validation_accuracy": round(accuracy, 6),
            "temperature": fit_temperature(logits, labels),
        }

    def state_dict(self) -> dict:
        parts = {key: getattr(self, key).state_dict() for key in ("network", "optimizer", "scheduler")}
        return parts | {key: getattr(self, key) for key in KEPT_IN_STATE}

    def load_state_dict(self, state: dict) -> None:
        rates = [group["lr"] for group in self.optimizer.param_groups]
        for key in ("network", "optimizer", "scheduler"):
            getattr(self, key).load_state_dict(state[key])
        keep_rate_tensors(self.optimizer, rates)
        for key in KEPT_IN_STATE:
            setattr(self, key, state[key])

    @property
    def kept(self) -> dict:
        """The best scores, of an epoch or of the mean. A finished training run always has some."""
        best = best_scores(self.curve, self.params, self.means)
        assert best is not None
        return best

    def tables(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The curves by epoch and by step. `kept` marks the best epoch, or the two whose mean is better."""
        epoch = self.kept["epoch"]
        kept = (0, self.last_epoch) if isinstance(epoch, str) else (epoch,)
        curve = [{**scores, "kept": scores["epoch"] in kept} for scores in self.curve]
        return pd.DataFrame(curve), pd.DataFrame(self.step_curve)

    def kept_scores(self) -> dict:
        """The best scores, `kept_epoch`, and on a CPU the number of threads, which repeating it needs.

        `kept_epoch` is a number, or a text such as `0+3 (1:3)` for a mean of epochs 0 and 3, of which the last one
        counts three times. There is no lr, because `dvc exp show` would show a second column of that name next to the
        param's.
        """
        scores = {"kept_epoch" if key == "epoch" else key: value for key, value in self.kept.items() if key != "lr"}
        return scores | ({"threads": torch.get_num_threads()} if self.train.device.type == "cpu" else {})

    def require_finite(self, loss: float, where: str) -> float:
        """Return `loss`. Raises UserError if it is infinite or NaN."""
        if not math.isfinite(loss):
            raise UserError(f"{where}: the loss is {loss}; try a smaller {self.params.key('lr')}")
        return loss

    def describe_unequal(self) -> str:
        """What matters if the classes are very unequal: the kept model's balanced accuracy, and the rarest class."""
        trained_on, photos = self.train.photos_by_class(), self.validation.photos_by_class()
        recall = dict(zip(photos, self.best_recall, strict=True))
        to_balance = "" if self.class_weights is not None else self.params.key("class_weights")
        return describe_unequal(trained_on, photos, recall, to_balance)

    def kept_model(self) -> tuple[dict[str, Tensor], dict]:
        """The best weights, calibrated, on the CPU, and the description that `save_model` stores with them.

        The logits of the model are those of the network divided by the temperature, so everything that uses the model
        gets calibrated probabilities. The description has the temperature, which gives the logits before.
        """
        description = {
            "network": self.name,
            "kept_epoch": self.kept["epoch"],
            "temperature": self.kept["temperature"],
            "head_width": self.params.head_width,
            "dropout": self.params.dropout,
            **({"class_weights": self.params.class_weights} if self.class_weights is not None else {}),
            **asdict(self.normalisation),
            **self.train.description,
        }
        weights = divide_logits(self.network, self.best_weights, self.kept["temperature"])
        return {key: tensor.cpu() for key, tensor in weights.items()}, description


def check_batch_size(params: Train, photos: int, processes: int = 1, which: str = "in train") -> None:
    """Raise UserError if there are fewer `photos` than a batch has, or the processes cannot share a batch equally.

    `which` says in the message which photos they are.
    """
    problem = f"params.yaml: {params.key('batch_size')} is {params.batch_size}"
    if params.batch_size > photos:
        raise UserError(f"{problem}; expected at most {photos}, the number of photos {which}")
    if params.batch_size % processes:
        raise UserError(f"{problem}; expected a multiple of {processes}, the number of processes that share each batch")


def make_network(name: str, weights: str, params: Train, train: PackedSplit) -> nn.Module:
    """Build the network with its pretrained weights and a new head, on train's device.

    Raises UserError if it does not exist, its weights cannot be used, or it cannot take the image sizes.
    """
    classes = len(train.description["classes"])
    network = build_network(name, weights, classes, params.head_width, params.dropout, params.seed)
    prepared_size = train.description["image_size"]
    check_image_size(network, name, prepared_size, "prepare.image_size")
    check_image_size(network, name, params.image_size or prepared_size, params.key("image_size"))
    return to_device(network, train.device)


def make_augmentation(params: Train, prepared_size: int, size: int | None = None) -> Augmentation | None:
    """What makes images of `size` pixels a side (None: as before) from prepared photos; None if they are used as is."""
    size = size or prepared_size
    if params.augment == "none" and size == prepared_size:
        return None
    crop_scale = params.crop_scale if params.augment == "crop_and_flip" else 1.0
    return Augmentation(size, crop_scale, flips=params.augment != "none")


def copy_weights(network: nn.Module) -> dict[str, Tensor]:
    """The network's state_dict, which does not change when the network does."""
    return {key: tensor.clone() for key, tensor in network.state_dict().items()}


def average(head: dict[str, Tensor], last: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """The weighted mean of two state_dicts: `last` counts `share`, from 0 to 1. Counters are those of `head`."""
    return {
        key: torch.lerp(tensor, last[key], share) if tensor.is_floating_point() else tensor
        for key, tensor in head.items()
    }


def describe_duration(seconds: float) -> str:
    """`43 s`, or `12 min` from two minutes on."""
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
