"""Join the predictions of all folds: every photo once, predicted by models that never saw it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pipeline.core.fold_paths import FOLDS_PREDICTIONS, fold_predictions
from pipeline.core.read_table import read_table, require_columns
from pipeline.folds.assigning import HELD_OUT
from pipeline.scores.combining import repeats_member
from pipeline.scores.ensembling import make_combination
from pipeline.scores.predictions import (
    PROBABILITY,
    PROBABILITY_DIGITS,
    label_numbers,
    probability_columns,
    read_predictions,
    select_split,
)
from pipeline.scores.scoring import ENSEMBLE

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Joined:
    """Predictions for photos, each by the models of one fold."""

    classes: list[str]
    photos: pd.DataFrame  # photo, label, fold (that was held out), and copy_of if these are the held-out photos
    probabilities: dict[str, np.ndarray]  # by network, and of the ensemble unless it repeats a single network

    @property
    def labels(self) -> np.ndarray:
        """The photos' labels, int [N]."""
        return label_numbers(self.photos["label"], self.classes)

    def where(self, chosen: pd.Series) -> "Joined":
        """The photos for which `chosen` is true."""
        rows = chosen.to_numpy()
        photos = self.photos[rows].reset_index(drop=True)
        return Joined(self.classes, photos, {name: values[rows] for name, values in self.probabilities.items()})

    def scored(self) -> "Joined":
        """Without all copies of a photo but one."""
        return self.where(self.photos["copy_of"] == "")

    def table(self) -> pd.DataFrame:
        """One row per photo: `photos`, then NETWORK_probability_CLASS for each network and class."""
        columns = [
            pd.DataFrame(values, columns=_columns(name, self.classes)) for name, values in self.probabilities.items()
        ]
        return pd.concat([self.photos, *columns], axis=1)


def join(photos: pd.DataFrame, networks: Sequence[str], method: str) -> tuple[Joined, Joined]:
    """The predictions for all held-out photos, and those for the photos that chose, in the order of `photos`.

    `photos` is what `assign_folds` returns. The ensemble of a fold is fitted on the photos that chose its members.
    """
    joined = []
    for part in (HELD_OUT, "validation"):
        by_fold = [_read_fold(fold, part, networks, method) for fold in range(1, photos["fold"].max() + 1)]
        together = pd.concat([one.photos for one in by_fold], ignore_index=True)
        place = pd.Series(together.index, together["photo"])[photos["photo"]].to_numpy()
        probabilities = {
            name: np.concatenate([one.probabilities[name] for one in by_fold])[place]
            for name in by_fold[0].probabilities
        }
        ordered = together.iloc[place].reset_index(drop=True).assign(copy_of=photos["copy_of"].to_numpy())
        joined.append(Joined(by_fold[0].classes, ordered, probabilities))
    return joined[0], joined[1]


def _read_fold(fold: int, part: str, networks: Sequence[str], method: str) -> Joined:
    logits = pd.concat([read_predictions(fold_predictions(network, fold)) for network in networks])
    predictions = select_split(logits, part)
    probabilities = dict(predictions.probabilities)
    if not repeats_member(method, networks):
        combination = make_combination(method, select_split(logits, "validation"))
        probabilities[ENSEMBLE] = combination(list(predictions.logits.values()))
    rounded = {name: values.round(PROBABILITY_DIGITS) for name, values in probabilities.items()}
    return Joined(predictions.classes, predictions.photos.assign(fold=fold), rounded)


def read_joined(file: Path | BinaryIO = FOLDS_PREDICTIONS, name: str = "") -> Joined:
    """What `Joined.table` gave, from a file. Arguments and errors: read_table."""
    photos = ["photo", "label", "fold", "copy_of"]
    table = read_table(file, photos, name)
    outputs = [column for column in map(str, table) if f"_{PROBABILITY}" in column]
    require_columns(name or str(file), [f"NETWORK_{PROBABILITY}CLASS"] if not outputs else [], table)
    networks = dict.fromkeys(column.split(f"_{PROBABILITY}")[0] for column in outputs)
    classes = [column.split(f"_{PROBABILITY}", 1)[1] for column in outputs][: len(outputs) // len(networks)]
    return Joined(classes, table[photos], {name: table[_columns(name, classes)].to_numpy() for name in networks})


def _columns(name: str, classes: Sequence[str]) -> list[str]:
    return [f"{name}_{column}" for column in probability_columns(classes)]
