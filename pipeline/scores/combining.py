"""Combine the predictions of several networks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.core.errors import UserError
from pipeline.core.files import read_json
from pipeline.core.paths import ENSEMBLE_SCORES

import numpy as np
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

WEIGHT_DIGITS = 6  # decimal places; rounded before use, so that the weights in ensemble.json give the same predictions


def is_positive(margin: np.ndarray) -> np.ndarray:
    """1.0 where a margin is above 0, else 0.0."""
    return (margin > 0).astype(float)


@dataclass(frozen=True)
class Combination:
    """How to combine the members; `method` is a value of ensemble.method.

    Only fitted_weights uses `weights` (one per network) and `intercept`.
    """

    method: str
    weights: dict[str, float] = field(default_factory=dict)
    intercept: float = 0.0

    def __call__(self, margins: Sequence[Any], sigmoid: Callable = expit, is_positive: Callable = is_positive) -> Any:
        """Combine margins, one array or tensor per network, into probabilities of dog of the same shape.

        `sigmoid` and `is_positive` (1 above 0, else 0) are NumPy's by default; pass others for tensors. Use only
        operations that tensors have too, because tools/export.py runs this in its graphs.
        """
        if self.method == "fitted_weights":
            weighted = (margin * weight for margin, weight in zip(margins, self.weights.values(), strict=True))
            return sigmoid(sum(weighted) + self.intercept)
        if self.method == "mean_logits":
            return sigmoid(sum(margins) / len(margins))
        mean_probability = sum(map(sigmoid, margins)) / len(margins)
        if self.method == "mean_probabilities":
            return mean_probability
        if self.method == "majority_vote":
            # The share of votes for dog. The mean probability counts as one more vote, which breaks ties but never
            # overrules a majority. Good for accuracy; the log loss is that of vote shares, not of probabilities.
            return (sum(map(is_positive, margins)) + mean_probability) / (len(margins) + 1)
        raise ValueError(f"unknown ensemble method {self.method!r}")


def fit_weights(margins: np.ndarray, labels: np.ndarray, networks: list[str]) -> Combination:
    """Fit fitted_weights by logistic regression on margins [N, networks] and labels [N] (0 cat, 1 dog)."""
    fitted = LogisticRegression().fit(margins, labels)
    weights = fitted.coef_[0].round(WEIGHT_DIGITS).tolist()
    intercept = round(float(fitted.intercept_[0]), WEIGHT_DIGITS)
    return Combination("fitted_weights", dict(zip(networks, weights, strict=True)), intercept)


def read_combination(networks: list[str]) -> Combination:
    """The combination of `networks` scored by the stage `ensemble`. Raises UserError if there is none."""
    scores = read_json(ENSEMBLE_SCORES)
    if scores.get("members") != ", ".join(networks):
        raise UserError(
            f"{ENSEMBLE_SCORES} is for {scores.get('members')}, but params.yaml lists {', '.join(networks)}; "
            "run `dvc repro` to fix this"
        )
    return Combination(scores["method"], scores.get("weights", {}), scores.get("intercept", 0.0))
