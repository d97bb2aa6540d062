"""Rank experiments, as a table for a terminal."""

import textwrap
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

from pipeline.core.params import as_written
from pipeline.runs.experiments import UNKNOWN, Experiment

WIDTH = 100  # of the output, in columns
HEADINGS = ("", "experiment", "log loss", "accuracy", "kept epoch")


def rank(experiments: list[Experiment], base: Experiment) -> Iterator[tuple[str, ...]]:
    """A row of text for each experiment, the best first."""
    first_with: dict[tuple, str] = {}
    for place, experiment in enumerate(sorted(experiments, key=lambda experiment: experiment.log_loss), start=1):
        notes = [describe_change(key, experiment, base) for key in base.params | experiment.params]
        same = first_with.setdefault(experiment.models, experiment.name)
        notes += [f"the same models as {same}"] if same != experiment.name else []
        yield (
            str(place) if "validation_log_loss" in experiment.scores else "-",
            experiment.name,
            *(score(experiment, name) for name in ("log_loss", "accuracy")),
            "\n".join(
                f"{network} {kept} of {epochs_of(network, experiment)}"
                for network, kept in experiment.kept_epochs.items()
            ),
            ", ".join(filter(None, notes)),
        )


def epochs_of(network: str, experiment: Experiment) -> Any:
    """How many epochs a network was trained for."""
    own, common = (experiment.params.get(key) for key in (f"networks.{network}.train.epochs", "train.epochs"))
    return own or common or UNKNOWN


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
