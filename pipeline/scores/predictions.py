"""Read the predictions that the stages wrote: logits of each network, and probabilities of the ensemble."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from pipeline.core.files import require_file
from pipeline.core.paths import ENSEMBLE_PREDICTIONS, PREDICTIONS

import numpy as np
import pandas as pd
from scipy.special import softmax

LOGIT, PROBABILITY = "logit_", "probability_"  # a column's name starts with this and ends with the class
PROBABILITY_DIGITS = 9  # decimal places of the ensemble's probabilities in files
TEXT = dict.fromkeys(("split", "photo", "label", "network"), str)  # columns; a class may look like a number


def logit_columns(classes: Sequence[str]) -> list[str]:
    return [f"{LOGIT}{name}" for name in classes]


def probability_columns(classes: Sequence[str]) -> list[str]:
    return [f"{PROBABILITY}{name}" for name in classes]


def classes_of(table: pd.DataFrame, prefix: str) -> list[str]:
    """The classes that a table has a column for, in the order of the labels; `prefix` is LOGIT or PROBABILITY."""
    return [column.removeprefix(prefix) for column in map(str, table) if column.startswith(prefix)]


def label_numbers(labels: pd.Series, classes: Sequence[str]) -> np.ndarray:
    """Class names as int [N]: their positions in `classes`."""
    return labels.map({name: number for number, name in enumerate(classes)}).to_numpy(dtype=int)


def read_logits() -> pd.DataFrame:
    """metrics/predictions.csv, one row per photo and network. Raises UserError if it does not exist."""
    return pd.read_csv(require_file(PREDICTIONS), dtype=TEXT, keep_default_na=False)


def read_ensemble_predictions() -> pd.DataFrame:
    """metrics/ensemble_predictions.csv, one row per photo. Raises UserError if it does not exist."""
    return pd.read_csv(require_file(ENSEMBLE_PREDICTIONS), dtype=TEXT, keep_default_na=False)


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
    classes = classes_of(logits, LOGIT)
    networks = dict(list(logits[logits["split"] == split].groupby("network", sort=False)))
    photos = next(iter(networks.values()))[["photo", "label"]].reset_index(drop=True)
    return Predictions(
        classes, photos, {name: rows[logit_columns(classes)].to_numpy() for name, rows in networks.items()}
    )
