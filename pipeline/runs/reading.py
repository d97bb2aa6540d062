"""Read what a run stored: its predictions, its photos, and the params and code that they were made with.

A run is a git revision, branch or tag, the name of a DVC experiment, or the workspace. DVC's cache and default remote
are read; nothing is checked out or run.
"""

import functools
import hashlib
import io
import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core import WORKSPACE
from pipeline.core.errors import UserError, first_line
from pipeline.core.params import flatten
from pipeline.core.parse_yaml import parse_yaml
from pipeline.core.paths import (
    CODE,
    ENSEMBLE_PREDICTIONS,
    NETWORK_PREDICTIONS,
    PARAMS,
    SPLIT_TABLE,
    model,
    network_metrics,
    train_stage,
)
from pipeline.core.results import LOCK, require_results
from pipeline.core.split_table import read_split_table
from pipeline.runs.git import DEEPEN, is_shallow
from pipeline.scores.predictions import (
    LOGIT,
    by_network,
    classes_of,
    label_numbers,
    log_losses,
    outputs_of,
    prefix_of,
    read_predictions,
)
from pipeline.scores.scoring import ENSEMBLE, predicted_labels

import numpy as np
import pandas as pd
import yaml
from dvc.api import DVCFileSystem
from dvc.exceptions import DvcException
from dvc.repo import Repo
from scipy.special import log_softmax, softmax

SEED = "train.seed"


@dataclass(frozen=True)
class Answers:
    """What a network or the ensemble of a run says of each photo, in the order of the run's `photos`."""

    classes: list[str]
    probabilities: np.ndarray  # [N, classes]
    correct: np.ndarray  # bool [N]
    log_loss: np.ndarray  # [N]


@dataclass(frozen=True)
class Run:
    """A run's answers on one split, and what they were made with."""

    name: str  # as the user calls it
    commit: str  # its first digits; empty for the workspace
    params: dict[str, Any]  # by dotted key
    code: dict[str, str]  # the hash of each module that a stage ran, and the version of each package
    photos: pd.DataFrame  # photo, label and sha256, sorted by sha256
    answers: dict[str, Answers]  # by network; and the ensemble's, unless it was fitted to these photos
    models: dict[str, str]  # by network: the hash of its model
    kept_epochs: dict[str, int | str]  # by network, if the run stored it: an epoch, or 0+3 (1:3) for a mean

    @property
    def seed(self) -> Any:
        return self.params[SEED]


def read_run(name: str, split: str) -> Run:
    """Read what a run stored. Raises UserError if there is no such run, or if some of it is missing or out of date."""
    commit, read = open_run(name)
    stages = read_lock(name, read)
    params = params_of(name, stages)
    require_consistent(name, stages, read)
    table = read_split_table(io.BytesIO(read(SPLIT_TABLE)), f"{name}: {SPLIT_TABLE}")
    photos = table.loc[table["split"] == split, ["photo", "label", "sha256"]]
    photos = photos.sort_values(["sha256", "photo"], ignore_index=True)

    answers = {}
    is_fitted = split == "validation" and params["ensemble.method"] == "fitted_weights"
    for path in (NETWORK_PREDICTIONS,) if is_fitted else (NETWORK_PREDICTIONS, ENSEMBLE_PREDICTIONS):
        table = read_predictions(io.BytesIO(read(path)), f"{name}: {path}")
        for network, rows in by_network(table[table["split"] == split]).items():
            answers[network] = answer(name, path, photos, rows)
    networks = [network for network in answers if network != ENSEMBLE]
    hashes = written_by(stages)
    models = {network: hashes[model(network).as_posix()] for network in networks}
    kept_epochs = read_kept_epochs(networks, read)
    return Run(name, commit, params, read_code(stages, read), photos, answers, models, kept_epochs)


def open_run(name: str) -> tuple[str, Callable[[Path], bytes]]:
    """The first digits of a run's commit, and a function that returns the content of one of its files.

    Raises UserError if there is no such run; so does the function if it cannot find the file.
    """
    cache, remote = dvc_settings()
    if name == WORKSPACE:
        return "", read_here
    # The revision has DVC's settings of its time; use the current cache and remote, which may be different.
    files = DVCFileSystem(".", rev=name, remote=remote, config={"cache": {"dir": cache}})
    try:
        commit = files.repo.get_rev()[:7]
    except DvcException as error:
        if is_shallow():
            raise UserError(
                f"{first_line(error)}: this clone is shallow, so it may lack the commit; run {DEEPEN} (in a workflow, "
                "set fetch-depth: 0 for the checkout)"
            ) from None
        raise UserError(
            f"{first_line(error)}; expected a git revision, branch or tag, an experiment (see `dvc exp list -A`) or "
            f"{WORKSPACE}"
        ) from None

    def read(path: Path) -> bytes:
        try:
            return files.read_bytes(path.as_posix())  # pyrefly: ignore[bad-return]
        except Exception as error:  # a remote's library may raise anything
            is_missing = isinstance(error, FileNotFoundError)
            if path == LOCK and is_missing:
                raise UserError(f"{name} ({commit}) has no {LOCK}, and therefore no stored results") from None
            reason = "" if is_missing else f" ({first_line(error)})"
            nor = f"nor in the remote {remote}{reason}" if remote else "and there is no default remote"
            raise UserError(
                f"{name} ({commit}): {path} is not in DVC's cache, {nor}; run `dvc push` or `dvc exp push` "
                "in the clone that has it"
            ) from None

    return commit, read


def read_here(path: Path) -> bytes:
    """The content of a result in the workspace. Raises UserError if it does not exist."""
    require_results(path)
    return path.read_bytes()


@functools.cache
def dvc_settings() -> tuple[str, str | None]:
    """The folder of DVC's cache, and the name of the default remote if there is one."""
    try:
        repository = Repo(".")
    except DvcException as error:
        raise UserError(f"{first_line(error)}; run this from the project's root") from None
    remote = repository.config["core"].get("remote")
    if remote and remote not in repository.config["remote"]:
        raise UserError(f"DVC's default remote is {remote}, which does not exist; see `dvc remote list`")
    return repository.cache.local_cache_dir, remote


def read_lock(name: str, read: Callable[[Path], bytes]) -> dict[str, dict]:
    """What dvc.lock says of the stages that lead to the predictions. Raises UserError if one has not run."""
    try:
        stages = parse_yaml(read(LOCK))["stages"]
        networks = stages["evaluate"]["params"][PARAMS.name]["networks"]
        needed = ("prepare", *map(train_stage, networks), "evaluate", "ensemble")
        stages = {stage: stages[stage] for stage in needed}
        written = written_by(stages)
    except KeyError as error:
        raise UserError(f"{name} has no stored predictions: {LOCK} lacks {error.args[0]}; run `dvc repro`") from None
    except TypeError:
        raise UserError(f"{name}: {LOCK} is not what DVC writes; run `dvc repro`") from None
    except yaml.YAMLError as error:
        raise UserError(f"{name}: {LOCK} is not valid YAML: {first_line(error)}") from None
    for path in (SPLIT_TABLE, NETWORK_PREDICTIONS, ENSEMBLE_PREDICTIONS, *map(model, networks)):
        if path.as_posix() not in written:
            raise UserError(f"{name} was run with another version of this pipeline, which did not write {path}")
    return stages


def written_by(stages: dict[str, dict]) -> dict[str, str]:
    """The hash of each file and folder that the stages wrote, by its path."""
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}


def params_of(name: str, stages: dict[str, dict]) -> dict[str, Any]:
    """The params that the stages ran with, which need not be those of params.yaml, by their dotted keys."""
    params: dict[str, Any] = {}
    for stage in stages.values():
        for key, value in flatten(stage["params"][PARAMS.name]):
            if params.setdefault(key, value) != value:
                raise UserError(f"{name} is out of date: some stages ran with another {key}; run `dvc repro`")
    return params


def read_code(stages: dict[str, dict], read: Callable[[Path], bytes]) -> dict[str, str]:
    """The hash of each module that the stages ran, and the version of each package.

    If a file that track_code wrote is no longer available, only its own hash is known.
    """
    code = {}
    for path, md5 in {dep["path"]: dep["md5"] for stage in stages.values() for dep in stage["deps"]}.items():
        if CODE in Path(path).parents:
            with suppress(UserError):
                if md5_of(content := read(Path(path))) == md5:
                    code |= dict(re.split(" |==", line, maxsplit=1) for line in content.decode().splitlines())
                    continue
            code[path] = md5
    return code


def md5_of(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def require_consistent(
    name: str,
    stages: dict[str, dict],
    read: Callable[[Path], bytes],
    results: Sequence[Path] = (SPLIT_TABLE, NETWORK_PREDICTIONS, ENSEMBLE_PREDICTIONS),
    command: str = "dvc repro",
) -> None:
    """Raise UserError unless each stage ran with the files that the stages before it wrote, and `results` are as then.

    `command` rebuilds the results.
    """
    written = written_by(stages)
    for stage_name, stage in stages.items():
        for dependency in stage["deps"]:
            path = dependency["path"]
            expected = written.get(path) or hash_of_folder(path, written)
            if expected and dependency["md5"] != expected:
                raise UserError(f"{name} is out of date: {stage_name} ran with another {path}; run `{command}`")
    for path in results if name == WORKSPACE else ():
        if md5_of(read(path)) != written[path.as_posix()]:
            raise UserError(f"{name}: {path} is not the one that `{command}` wrote; run `{command}` to restore it")


def hash_of_folder(folder: str, written: dict[str, str]) -> str:
    """DVC's hash of a folder with the files in it that the stages wrote, and no others; empty if there are none."""
    files = [
        {"md5": md5, "relpath": path.removeprefix(f"{folder}/")}
        for path, md5 in sorted(written.items())
        if path.startswith(f"{folder}/")
    ]
    return f"{md5_of(json.dumps(files, sort_keys=True).encode())}.dir" if files else ""


def read_kept_epochs(networks: Sequence[str], read: Callable[[Path], bytes]) -> dict[str, int | str]:
    """The epochs that `train` kept, by network; earlier versions did not store them."""
    found = {}
    for network in networks:
        with suppress(UserError):
            found[network] = json.loads(read(network_metrics(network))).get("kept_epoch")
    return {network: epoch for network, epoch in found.items() if epoch is not None}


def answer(name: str, path: Path, photos: pd.DataFrame, rows: pd.DataFrame) -> Answers:
    """The answers in `rows`, of one network or the ensemble. Raises UserError if they are not for these photos."""
    rows = photos[["photo"]].merge(rows, on="photo", how="inner")
    if len(rows) != len(photos) or not len(photos):
        raise UserError(f"{name}: {path} is not for the photos in {SPLIT_TABLE}; run `dvc repro`")
    classes, outputs = classes_of(rows), outputs_of(rows)
    labels = label_numbers(photos["label"], classes)
    if prefix_of(rows) == LOGIT:
        probabilities, losses = softmax(outputs, axis=1), -log_softmax(outputs, axis=1)[np.arange(len(labels)), labels]
    else:
        probabilities, losses = outputs, log_losses(outputs, labels)
    return Answers(classes, probabilities, predicted_labels(probabilities) == labels, losses)
