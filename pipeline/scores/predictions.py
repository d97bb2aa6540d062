"""Read the predictions that the stages wrote: logits of each network, and probabilities of the ensemble."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from pipeline.core.paths import ENSEMBLE_PREDICTIONS, NETWORK_PREDICTIONS
from pipeline.core.read_table import read_table, require_columns
from pipeline.scores.scoring import ENSEMBLE

import numpy as np
import pandas as pd
from scipy.special import softmax

LOGIT, PROBABILITY = "logit_", "probability_"  # a column's name starts with this and ends with the class
PROBABILITY_DIGITS = 9  # decimal places of probabilities in files
MIN_PROBABILITY = 0.5 * 10**-PROBABILITY_DIGITS  # in a log loss; smaller ones are 0 in files


def logit_columns(classes: Sequence[str]) -> list[str]:
    return [f"{LOGIT}{name}" for name in classes]


def probability_columns(classes: Sequence[str]) -> list[str]:
    return [f"{PROBABILITY}{name}" for name in classes]


def prefix_of(table: pd.DataFrame) -> str:
    """LOGIT in a table of networks' predictions, PROBABILITY in one of the ensemble's."""
    return LOGIT if "network" in table else PROBABILITY


def classes_of(table: pd.DataFrame) -> list[str]:
    """The classes that a table of predictions has a column for, in the order of the labels."""
    prefix = prefix_of(table)
    return [column.removeprefix(prefix) for column in map(str, table) if column.startswith(prefix)]


def outputs_of(table: pd.DataFrame) -> np.ndarray:
    """The logits or probabilities in a table of predictions: float64 [N, classes]."""
    return table[[f"{prefix_of(table)}{name}" for name in classes_of(table)]].to_numpy()


def label_numbers(labels: pd.Series, classes: Sequence[str]) -> np.ndarray:
    """Class names as int [N]: their positions in `classes`."""
    return labels.map({name: number for number, name in enumerate(classes)}).to_numpy(dtype=int)


def log_losses(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The log loss of each photo in nats, float64 [N], from probabilities [N, classes] that were read from a file."""
    return -np.log(probabilities[np.arange(len(labels)), labels].clip(MIN_PROBABILITY))


def read_predictions(file: Path | BinaryIO, name: str = "") -> pd.DataFrame:
    """A table of predictions: one row per photo and network, or, of the ensemble, one row per photo.

    Arguments and errors: read_table.
    """
    table = read_table(file, ["split", "photo", "label"], name)
    columns = logit_columns if prefix_of(table) == LOGIT else probability_columns
    require_columns(name or str(file), columns(classes_of(table) or ["CLASS"]), table)
    return table


def read_logits() -> pd.DataFrame:
    """The networks' predictions. Raises UserError if they are missing."""
    return read_predictions(NETWORK_PREDICTIONS)


def read_ensemble_predictions() -> pd.DataFrame:
    """The ensemble's predictions. Raises UserError if they are missing."""
    return read_predictions(ENSEMBLE_PREDICTIONS)


def by_network(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of each network in a table of predictions; of the ensemble's table, all under ENSEMBLE."""
    if "network" not in table:
        return {ENSEMBLE: table}
    return {str(name): rows for name, rows in table.groupby("network", sort=False)}


@dataclass(frozen=True)
class Predictions:
    """The predictions of every network on the photos of one split."""

    classes: list[str]
    photos: pd.DataFrame  # columns photo and label, one row per photo
    logits: dict[str, np.ndarray]  # by network: float64 [N, classes]

    @cached_property
    def labels(self) -> np.ndarray:
        """The photos' labels, int [N]."""
        return label_numbers(self.photos["label"], self.classes)

    @cached_property
    def photos_by_class(self) -> dict[str, int]:
        """The number of photos of each class."""
        return dict(zip(self.classes, np.bincount(self.labels, minlength=len(self.classes)).tolist(), strict=True))

    @cached_property
    def probabilities(self) -> dict[str, np.ndarray]:
        """By network: float64 [N, classes]."""
        return {name: softmax(logits, axis=1) for name, logits in self.logits.items()}


def select_split(logits: pd.DataFrame, split: str) -> Predictions:
    """The predictions on one split, from a table as `read_logits` returns it."""
    networks = by_network(logits[logits["split"] == split])
    photos = next(iter(networks.values()))[["photo", "label"]].reset_index(drop=True)
    return Predictions(classes_of(logits), photos, {name: outputs_of(rows) for name, rows in networks.items()})
