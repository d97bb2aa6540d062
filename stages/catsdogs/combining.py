"""Making one probability out of what several networks say."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from catsdogs.errors import UserError
from catsdogs.files import read_json

import numpy as np
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

ENSEMBLE_SCORES = Path("metrics/ensemble.json")
ENSEMBLE_PREDICTIONS = Path("metrics/ensemble_predictions.csv")
WEIGHT_DIGITS = 6  # after the point; rounded before use, so that the weights in ensemble.json give the same again


def is_positive(margin: np.ndarray) -> np.ndarray:
    """1 where a margin is above 0, else 0."""
    return (margin > 0).astype(float)


@dataclass(frozen=True)
class Combination:
    """A `method` of params.yaml's `ensemble`; fitted_weights has a weight for each network, and an intercept."""

    method: str
    weights: dict[str, float] = field(default_factory=dict)
    intercept: float = 0.0

    def __call__(self, margins: Sequence[Any], sigmoid: Callable = expit, is_positive: Callable = is_positive) -> Any:
        """From the networks' margins, an array or tensor for each network, to probabilities of dog of their shape.

        `sigmoid` and `is_positive` (1 above 0, else 0) are those of NumPy unless others are given.
        """
        if self.method == "fitted_weights":
            weighted = (margin * weight for margin, weight in zip(margins, self.weights.values(), strict=True))
            return sigmoid(sum(weighted) + self.intercept)
        if self.method == "mean_logits":
            return sigmoid(sum(margins) / len(margins))
        mean_probability = sum(map(sigmoid, margins)) / len(margins)
        if self.method == "mean_probabilities":
            return mean_probability
        # majority_vote: the share of votes for dog. The mean probability counts as one vote more, which breaks ties and
        # never a majority. Good for accuracy; its log loss is that of vote shares, not of beliefs.
        return (sum(map(is_positive, margins)) + mean_probability) / (len(margins) + 1)


def fit_weights(margins: np.ndarray, labels: np.ndarray, networks: list[str]) -> Combination:
    """fitted_weights by logistic regression on margins [N, networks] and labels (0 cat, 1 dog)."""
    fitted = LogisticRegression().fit(margins, labels)
    weights = fitted.coef_[0].round(WEIGHT_DIGITS).tolist()
    intercept = round(float(fitted.intercept_[0]), WEIGHT_DIGITS)
    return Combination("fitted_weights", dict(zip(networks, weights, strict=True)), intercept)


def read_combination(networks: list[str]) -> Combination:
    """The combination of `networks` that the stage `ensemble` has scored. Raises UserError where there is none."""
    scores = read_json(ENSEMBLE_SCORES)
    if scores.get("members") != ", ".join(networks):
        raise UserError(
            f"{ENSEMBLE_SCORES} is of {scores.get('members')}, and params.yaml names {', '.join(networks)}; "
            "run `dvc repro` to fix this"
        )
    return Combination(scores["method"], scores.get("weights", {}), scores.get("intercept", 0.0))
