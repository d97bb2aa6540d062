"""All experiments that git and DVC know, with their scores; nothing is checked out or run."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core import WORKSPACE
from pipeline.core.errors import UserError, first_line
from pipeline.core.paths import ENSEMBLE_METRICS, SPLIT_TABLE, model, network_metrics
from pipeline.core.split_table import read_split_table
from pipeline.runs.reading import params_of, read_here, read_lock, require_consistent, written_by

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.repo.experiments.serialize import ExpState
from dvc.repo.metrics.show import FileResult
from scmrepo.exceptions import SCMError

HEAD = "HEAD"
UNKNOWN = "?"  # for what earlier versions did not store


@dataclass(frozen=True)
class Experiment:
    """A run and its scores: an experiment, HEAD or the workspace."""

    name: str
    params: dict[str, Any]  # by dotted key
    scores: dict[str, float]  # those in metrics/ensemble.json
    models: tuple[str, ...]  # hashes
    kept_epochs: dict[str, int | str]  # by network
    photos: tuple[str, ...]  # the validation photos: SHA-256 and label

    @property
    def log_loss(self) -> float:
        """On validation; infinite if the ensemble was fitted to these photos and so has no such score."""
        return self.scores.get("validation_log_loss", math.inf)


def find_experiments() -> tuple[list[Experiment], list[str]]:
    """All runs that have scores, without duplicates, HEAD first; and the reasons why others are left out.

    Raises UserError if this is not the root of a project with DVC and commits in git.
    """
    try:
        with Repo(".") as repository:
            return find_in(repository)
    except (DvcException, SCMError) as error:
        raise UserError(f"{first_line(error)}; expected the root of a project with DVC and commits in git") from None


def find_in(repository: Repo) -> tuple[list[Experiment], list[str]]:
    baselines = repository.experiments.ls(all_commits=True)
    states = repository.experiments.show(revs=[HEAD, *baselines])
    found: dict[str, Experiment] = {}
    unfinished = []
    for name, state, is_finished in named_states(states, repository.scm.get_rev()):
        if is_finished and state.data and content(state.data.metrics, ENSEMBLE_METRICS):
            try:
                params, outputs = params_and_outputs(name, state.rev, repository)
            except UserError as error:  # some of its stages have not run
                unfinished.append(str(error))
                continue
            experiment = read_experiment(name, params, state.data.metrics, outputs, repository)
            found.setdefault(json.dumps([params, outputs]), experiment)
        elif name not in (HEAD, WORKSPACE):
            unfinished.append(f"{name} has no results; see `dvc queue status`")
    return list(found.values()), unfinished


def named_states(states: list[ExpState], head: str) -> Iterator[tuple[str, ExpState, bool]]:
    """HEAD, the experiments of all commits and the workspace, each with its name and whether it has finished."""
    yield from ((HEAD, state, True) for state in states if state.rev == head)
    for state in states:
        for experiment in state.experiments or []:
            last = experiment.revs[0]
            is_finished = experiment.executor is None or experiment.executor.state == "success"
            yield last.name or experiment.name or last.rev[:7], last, is_finished
    yield from ((WORKSPACE, state, True) for state in states if state.rev == WORKSPACE)


def content(files: dict[str, FileResult], path: Path) -> dict:
    """The content of a file of metrics; empty if it does not exist."""
    return files.get(path.as_posix(), {}).get("data") or {}


def params_and_outputs(name: str, revision: str, repository: Repo) -> tuple[dict[str, Any], dict[str, str]]:
    """The params and output hashes in the dvc.lock of a run. Raises UserError if some of its stages have not run."""
    if revision == WORKSPACE:
        read = read_here
    else:
        files = repository.scm.get_fs(revision)
        folder = Path(repository.root_dir).relative_to(repository.scm.root_dir)

        def read(path: Path) -> bytes:
            return files.read_bytes((folder / path).as_posix())  # pyrefly: ignore[bad-return]

    stages = read_lock(name, read)
    require_consistent(name, stages, read)
    return params_of(name, stages), written_by(stages)


def read_experiment(
    name: str, params: dict[str, Any], metrics: dict[str, FileResult], outputs: dict[str, str], repository: Repo
) -> Experiment:
    """Read an experiment. Its validation photos come from DVC's cache; if they are not there, `photos` is empty."""
    networks = [key.split(".")[1] for key in params if re.fullmatch(r"networks\..*\.weights", key)]
    split_table = Path(repository.cache.local.oid_to_path(outputs[SPLIT_TABLE.as_posix()]))
    validation = read_split_table(split_table).query("split == 'validation'") if split_table.exists() else None
    return Experiment(
        name=name,
        params=params,
        scores=content(metrics, ENSEMBLE_METRICS),
        models=tuple(outputs[model(network).as_posix()] for network in networks),
        kept_epochs={
            network: content(metrics, network_metrics(network)).get("kept_epoch", UNKNOWN) for network in networks
        },
        photos=() if validation is None else tuple(sorted(validation["sha256"] + " " + validation["label"])),
    )
