"""Making one probability out of what several networks say."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from catsdogs.errors import UserError
from catsdogs.files import read_json

ENSEMBLE_SCORES = Path("metrics/ensemble.json")
ENSEMBLE_PREDICTIONS = Path("metrics/ensemble_predictions.csv")
WEIGHT_DIGITS = 6  # after the point; rounded before use, so that the weights in ensemble.json give the same again


@dataclass(frozen=True)
class Combination:
    """A `method` of params.yaml's `ensemble`; fitted_weights has a weight for each network, and an intercept."""

    method: str
    weights: dict[str, float] = field(default_factory=dict)
    intercept: float = 0.0

    def __call__(self, margins: Any, sigmoid: Callable = expit) -> Any:
        """From the networks' margins [N, networks], an array, to probabilities of dog [N].

        With torch.sigmoid as `sigmoid` it takes and gives tensors.
        """
        if self.method == "fitted_weights":
            weighted = (margins[:, column] * weight for column, weight in enumerate(self.weights.values()))
            return sigmoid(sum(weighted) + self.intercept)
        if self.method == "mean_logits":
            return sigmoid(margins.mean(1))
        mean_probability = sigmoid(margins).mean(1)
        if self.method == "mean_probabilities":
            return mean_probability
        # majority_vote: the share of votes for dog. The mean probability counts as one vote more, which breaks ties and
        # never a majority. Good for accuracy; its log loss is that of vote shares, not of beliefs.
        return ((margins > 0).sum(1) + mean_probability) / (margins.shape[1] + 1)


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
            "`dvc repro` makes it anew"
        )
    return Combination(scores["method"], scores.get("weights", {}), scores.get("intercept", 0.0))
