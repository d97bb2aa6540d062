"""Train one network of torchvision to tell cats from dogs, and keep its best epoch.

Usage, from the project's root: python stages/train.py NETWORK, for example resnet18
or, in several processes: torchrun --standalone --nproc-per-node=4 stages/train.py NETWORK
Reads data/prepared/{train,validation}.safetensors; writes models/NETWORK.safetensors, metrics/train_NETWORK.json and
metrics/curves/NETWORK.csv. While it trains, models/NETWORK.checkpoint holds what a stopped training goes on from.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out

import math
import time
from dataclasses import asdict

from catsdogs.checkpoint import Checkpoint
from catsdogs.compute import (
    autocast,
    choose_device,
    choose_precision,
    keep_freed_memory,
    make_deterministic,
    predict_logits,
)
from catsdogs.dataset import PackedSplit, open_split
from catsdogs.distributed import Processes, all_processes
from catsdogs.errors import UserError
from catsdogs.files import PREPARED, write_json, written_whole
from catsdogs.networks import (
    build_network,
    check_image_size,
    fold_batchnorm,
    save_network,
    set_trainable,
    set_training,
)
from catsdogs.params import Params, Train, read_params
from catsdogs.process import run_stage

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, StepLR
from torchvision.transforms import v2
from tqdm import tqdm

STEPS_BETWEEN_CHECKS = 20  # reading the loss makes a GPU wait, so it is not done at every step


def main() -> None:
    name = network_name(sys.argv[1:])
    params = read_params()
    if name not in params.networks:
        raise UserError(f"{name} is not under networks in params.yaml; there: {', '.join(params.networks)}")
    make_deterministic()
    keep_freed_memory()
    device = choose_device()
    with all_processes(device) as processes:
        train_network(name, params, device, processes)


def train_network(name: str, params: Params, device: torch.device, processes: Processes) -> None:
    """Train, validate after each epoch, and write the best one's model, scores and curves."""
    recipe = params.train
    dtype = choose_precision(params.precision, device)
    files = [PREPARED / f"{split}.safetensors" for split in ("train", "validation")]
    train, validation = (open_split(file, device) for file in files)
    check_batch_size(recipe.batch_size, train, processes)
    settings = {
        "weights": params.networks[name].weights,
        "lr": params.lr,
        "precision": str(dtype),
        "processes": processes.count,
        **asdict(recipe),
    }
    processes.check_agreement([name, settings, train.description])

    weights = params.networks[name].weights if processes.first else "none"  # the others get them from the first
    network = build_network(name, weights, recipe.head_width, recipe.dropout, recipe.seed)
    prepared_size = train.description["image_size"]
    check_image_size(network, name, prepared_size, "prepare.image_size")
    check_image_size(network, name, recipe.image_size or prepared_size, "train.image_size")
    network.to(device, memory_format=torch.channels_last)
    head, body = set_trainable(network, recipe.layers)
    if recipe.layers == "batchnorm" and not body:
        raise UserError(f"params.yaml: train.layers is batchnorm, and {name} has none; expected head, last_half or all")
    optimizer = make_optimizer(recipe, head, body, params.lr)
    steps = len(train) // recipe.batch_size  # in an epoch; the few photos over wait for another epoch's order
    scheduler = make_scheduler(recipe, optimizer, steps)
    processes.report(
        f"{name}: {len(train)} photos, epochs: {recipe.epochs}, {str(dtype).removeprefix('torch.')} on {device.type}"
        + (f", {processes.count} processes" if processes.count > 1 else "")
    )

    checkpoint = Checkpoint(Path(f"models/{name}.checkpoint"), settings, files, device)
    stateful = {"network": network, "optimizer": optimizer, "scheduler": scheduler}
    curves: list[dict] = []
    best_state: dict[str, Tensor] = {}
    if state := processes.from_first(checkpoint.load() if processes.first else None):
        for key, part in stateful.items():
            part.load_state_dict(state[key])
        curves, best_state = state["curves"], state["best_state"]
        processes.report(f"{name}: goes on after epoch {len(curves)}")
    parallel = processes.parallel(network, device)

    for epoch in range(len(curves) + 1, recipe.epochs + 1):
        seed = recipe.seed * 1000 + epoch  # an epoch's draws depend on its number, not on those before it
        torch.manual_seed(seed)
        order = torch.randperm(len(train)).to(device)  # the same in every process ...
        processes.seed_apart(seed)  # ... unlike dropout and augmentation
        batches = [processes.share(rows) for rows in order[: steps * recipe.batch_size].split(recipe.batch_size)]
        learning_rate = scheduler.get_last_lr()[0]  # the head's
        set_training(network, recipe.layers)
        start = time.perf_counter()
        train_loss = train_epoch(parallel, optimizer, scheduler, train, batches, dtype, recipe, f"{name} epoch {epoch}")
        train_loss = processes.gather(torch.tensor([train_loss])).mean().item()
        rate = steps * recipe.batch_size / (time.perf_counter() - start)
        processes.same_statistics(network)
        validation_scores = validate(network, validation, dtype, processes, f"{name} validation")

        scores = {"epoch": epoch, "lr": learning_rate, "train_loss": round(train_loss, 6), **validation_scores}
        curves.append(scores)
        if best_epoch(curves) is scores:
            best_state = {key: tensor.cpu().clone() for key, tensor in network.state_dict().items()}
        if processes.first:
            states = {key: part.state_dict() for key, part in stateful.items()}
            checkpoint.save({**states, "curves": curves, "best_state": best_state})
        processes.report(
            f"{name} epoch {epoch}/{recipe.epochs}: train loss {scores['train_loss']:.4f}, "
            f"validation loss {scores['validation_loss']:.4f}, "
            f"validation accuracy {scores['validation_accuracy']:.6f}, {rate:.1f} images/s"
        )

    if processes.first:
        # Without lr: `dvc exp show` would show a second column of that name beside the param's.
        best = {key: value for key, value in best_epoch(curves).items() if key != "lr"}
        description = {"network": name, "head_width": recipe.head_width, "dropout": recipe.dropout, **train.description}
        with written_whole() as write_to:
            pd.DataFrame(curves).to_csv(write_to(Path(f"metrics/curves/{name}.csv")), index=False)
            write_json(write_to(Path(f"metrics/train_{name}.json")), best)
            save_network(write_to(Path(f"models/{name}.safetensors")), best_state, description)
        checkpoint.delete()


def best_epoch(curves: list[dict]) -> dict:
    """The epoch with the highest validation accuracy, the first of several."""
    return max(curves, key=lambda scores: scores["validation_accuracy"])


def network_name(arguments: list[str]) -> str:
    if len(arguments) != 1:
        raise UserError("expected one argument, the network to train: python stages/train.py resnet18")
    return arguments[0]


def check_batch_size(batch_size: int, train: PackedSplit, processes: Processes) -> None:
    """Raise UserError where `train` has no whole batch, or the processes cannot share one equally."""
    if batch_size > len(train):
        raise UserError(f"params.yaml: train.batch_size is {batch_size}; expected at most {len(train)}, all of train")
    if batch_size % processes.count:
        raise UserError(
            f"params.yaml: train.batch_size is {batch_size}; expected a multiple of {processes.count}, the number of "
            "processes that share each batch"
        )


def make_optimizer(
    recipe: Train, head: list[nn.Parameter], body: list[nn.Parameter], lr: float
) -> torch.optim.Optimizer:
    """train.optimizer at the learning rate `lr` for `head`, and at train.body_lr_factor times it for `body`."""
    parameters = [{"params": head, "lr": lr}, {"params": body, "lr": lr * recipe.body_lr_factor}]
    if recipe.optimizer == "adam":
        return torch.optim.Adam(parameters)
    return torch.optim.SGD(parameters, momentum=recipe.momentum)


def make_scheduler(recipe: Train, optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
    """The learning rate's course; it goes on with every one of an epoch's `steps`."""
    if recipe.lr_schedule == "one_cycle":
        peaks = [group["lr"] for group in optimizer.param_groups]
        return OneCycleLR(optimizer, peaks, total_steps=recipe.epochs * steps + 1, cycle_momentum=False)
    return StepLR(optimizer, (recipe.lr_step_size or math.inf) * steps, recipe.lr_gamma)


def make_augmentation(recipe: Train, prepared_size: int) -> v2.Transform | None:
    """From a photo as prepared to a picture of train.image_size a side; None where the photo is taken as it is."""
    size = recipe.image_size or prepared_size
    transforms: list[v2.Transform] = []
    if recipe.augment == "crop_and_flip":
        transforms.append(v2.RandomResizedCrop(size, scale=(recipe.crop_scale, 1)))
    elif size != prepared_size:
        transforms.append(v2.Resize((size, size)))
    if recipe.augment != "none":
        transforms.append(v2.RandomHorizontalFlip())
    return v2.Compose(transforms) if transforms else None


def train_epoch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler,
    train: PackedSplit,
    batches: list[Tensor],
    dtype: torch.dtype,
    recipe: Train,
    title: str,
) -> float:
    """One step for each of `batches`, rows of `train`; gives the mean loss.

    Raises UserError as soon as that is seen not to be finite.
    """
    augment = make_augmentation(recipe, train.description["image_size"])
    criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    total_loss = torch.zeros((), device=train.device)
    with tqdm(total=sum(map(len, batches)), desc=title, unit=" images", disable=None) as bar:
        for step, rows in enumerate(batches, start=1):
            with autocast(train.device, dtype):
                logits = network(train.images(rows, augment))
            loss = criterion(logits, train.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            total_loss += loss.detach()
            if step % STEPS_BETWEEN_CHECKS == 0 or step == len(batches):
                mean_loss = total_loss.item() / step
                if not math.isfinite(mean_loss):
                    raise UserError(f"{title}: the loss is {mean_loss} after {step} steps; try a smaller lr")
                bar.set_postfix(loss=f"{mean_loss:.4f}")
            bar.update(len(rows))
    return mean_loss


def validate(network: nn.Module, validation: PackedSplit, dtype: torch.dtype, processes: Processes, title: str) -> dict:
    """`validation_loss` (log loss, in nats) and `validation_accuracy` (0 to 1) of all processes' shares together.

    Leaves the network in eval mode. Raises UserError where the loss is not finite.
    """
    share = validation.part(slice(processes.rank, None, processes.count))
    logits = processes.gather(predict_logits(fold_batchnorm(network), share, dtype, title))
    labels = validation.labels.cpu()
    loss = nn.functional.cross_entropy(logits, labels).item()
    if not math.isfinite(loss):
        raise UserError(f"{title}: the loss is {loss}; try a smaller lr")
    accuracy = (logits.argmax(1) == labels).double().mean().item()
    return {"validation_loss": round(loss, 6), "validation_accuracy": round(accuracy, 6)}


if __name__ == "__main__":
    run_stage(main)
