"""Rank all experiments by the ensemble's log loss on validation, never by test.

Shows each experiment's validation scores, the epoch that each network kept (0 is the fitted head), and the params that
differ from HEAD's. Experiments on other validation photos cannot be compared, so they are ranked separately. Everything
is read from git and DVC's cache; nothing is checked out or run.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

import json
import math
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from pipeline.core import WORKSPACE
from pipeline.core.command_line import read_arguments
from pipeline.core.errors import UserError, first_line
from pipeline.core.params import as_written
from pipeline.core.paths import ENSEMBLE_METRICS, SPLIT_TABLE, model, network_metrics
from pipeline.core.process import check_first, run_stage

if __name__ == "__main__":
    check_first(lambda: read_arguments(__doc__))

from pipeline.core.split_table import read_split_table
from pipeline.runs.reading import params_of, read_here, read_lock, require_consistent, written_by

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.repo.experiments.serialize import ExpState
from scmrepo.exceptions import SCMError

HEAD = "HEAD"
WIDTH = 100  # of the output, in columns
HEADINGS = ("", "experiment", "log loss", "accuracy", "kept epoch")
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


def main() -> None:
    read_arguments(__doc__)
    try:
        with Repo(".") as repository:
            found, unfinished = find_experiments(repository)
    except (DvcException, SCMError) as error:
        raise UserError(f"{first_line(error)}; expected the root of a project with DVC and commits in git") from None
    if not found:
        raise UserError("there are no results yet; run `dvc exp run`")
    base = found[0]  # HEAD, if it has results
    groups: dict[tuple[str, ...], list[Experiment]] = {}
    for experiment in found:
        groups.setdefault(experiment.photos, []).append(experiment)
    for photos, group in groups.items():
        judged_on = f"{len(photos):,} validation photos" if photos else "validation photos that are not in DVC's cache"
        print(f"Ranked by the ensemble's log loss on {judged_on}:")
        print("\n".join([*table([(*HEADINGS, f"params that differ from {base.name}"), *rank(group, base)]), ""]))
    if any(0 in experiment.kept_epochs.values() for experiment in found):
        print("Kept epoch 0 is the fitted head: no training was kept.")
    if len(groups) > 1:
        print("Scores on different validation photos cannot be compared.")
    for reason in unfinished:
        print(f"Left out: {reason}")
    print(f"Which differences are more than chance: python tools/compare.py {base.name} EXPERIMENT")


# ---- what DVC knows ----


def find_experiments(repository: Repo) -> tuple[list[Experiment], list[str]]:
    """All runs that have scores, without duplicates, HEAD first; and the reasons why others are left out."""
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


def content(files: dict[str, dict], path: Path) -> dict:
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
    name: str, params: dict[str, Any], metrics: dict[str, dict], outputs: dict[str, str], repository: Repo
) -> Experiment:
    """Read an experiment. Its validation photos come from DVC's cache; if they are not there, `photos` is empty."""
    networks = [key.split(".")[1] for key in params if key.startswith("networks.")]
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


# ---- the table ----


def rank(experiments: list[Experiment], base: Experiment) -> Iterator[tuple[str, ...]]:
    """A row of text for each experiment, the best first."""
    first_with: dict[tuple, str] = {}
    for place, experiment in enumerate(sorted(experiments, key=lambda experiment: experiment.log_loss), start=1):
        notes = [describe_change(key, experiment, base) for key in base.params | experiment.params]
        same = first_with.setdefault(experiment.models, experiment.name)
        notes += [f"the same models as {same}"] if same != experiment.name else []
        epochs = experiment.params.get("train.epochs", UNKNOWN)
        yield (
            str(place) if "validation_log_loss" in experiment.scores else "-",
            experiment.name,
            *(score(experiment, name) for name in ("log_loss", "accuracy")),
            "\n".join(f"{network} {kept}/{epochs}" for network, kept in experiment.kept_epochs.items()),
            ", ".join(filter(None, notes)),
        )


def score(experiment: Experiment, name: str) -> str:
    value = experiment.scores.get(f"validation_{name}")
    return "none" if value is None else f"{value:.4f}"


def describe_change(key: str, experiment: Experiment, base: Experiment) -> str:
    """`lr 0.0005` if that differs from `base`, else empty."""
    if key not in experiment.params:
        return f"no {key}"
    value = experiment.params[key]
    return f"{key} {as_written(value)}" if key not in base.params or base.params[key] != value else ""


def table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """Lines with aligned columns; the last column is wrapped."""
    widths = [max(len(line) for row in rows for line in row[column].split("\n")) for column in range(len(HEADINGS))]
    indent = sum(width + 2 for width in widths)
    for row in rows:
        last = textwrap.wrap(row[-1], max(WIDTH - indent, 20), break_long_words=False, break_on_hyphens=False)
        for cells in zip_longest(*(cell.split("\n") for cell in row[:-1]), last, fillvalue=""):
            aligned = (f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=False))
            yield "  ".join([*aligned, cells[-1]]).rstrip()


if __name__ == "__main__":
    run_stage(main)
