"""Making one probability out of what several networks say."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from catsdogs.errors import UserError

ENSEMBLE_SCORES = Path("metrics/ensemble.json")
WEIGHT_DIGITS = 6  # after the point; rounded before use, so that the weights in ensemble.json give the same again


@dataclass(frozen=True)
class Combination:
    """A `method` of params.yaml's `ensemble`; fitted_weights has a weight for each network, and an intercept."""

    method: str
    weights: dict[str, float] = field(default_factory=dict)
    intercept: float = 0.0

    def __call__(self, margins: pd.DataFrame) -> np.ndarray:
        """From the networks' margins [N, networks], a column named for each, to probabilities of dog: float64 [N]."""
        if self.method == "fitted_weights":
            weighted = (margins[name] * weight for name, weight in self.weights.items())
            return expit(sum(weighted) + self.intercept).to_numpy()
        probabilities = expit(margins)
        if self.method == "mean_logits":
            return expit(margins.mean(axis=1)).to_numpy()
        if self.method == "mean_probabilities":
            return probabilities.mean(axis=1).to_numpy()
        # majority_vote: the share of votes for dog. The mean probability counts as one vote more, which breaks ties and
        # never a majority. Good for accuracy; its log loss is that of vote shares, not of beliefs.
        votes = (margins > 0).sum(axis=1)
        return ((votes + probabilities.mean(axis=1)) / (margins.shape[1] + 1)).to_numpy()


def fit_weights(margins: pd.DataFrame, labels: np.ndarray) -> Combination:
    """fitted_weights by logistic regression on margins [N, networks] and labels (0 cat, 1 dog)."""
    fitted = LogisticRegression().fit(margins, labels)
    weights = fitted.coef_[0].round(WEIGHT_DIGITS).tolist()
    return Combination(
        "fitted_weights",
        dict(zip(margins.columns, weights, strict=True)),
        round(float(fitted.intercept_[0]), WEIGHT_DIGITS),
    )


def read_combination(networks: list[str]) -> Combination:
    """The combination of `networks` that the stage `ensemble` has scored. Raises UserError where there is none."""
    try:
        scores = json.loads(ENSEMBLE_SCORES.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no {ENSEMBLE_SCORES}; `dvc repro` writes it") from None
    if scores["members"] != networks:
        raise UserError(
            f"{ENSEMBLE_SCORES} is of {', '.join(scores['networks'])}, and params.yaml names {', '.join(networks)}; "
            "`dvc repro` makes it anew"
        )
    return Combination(scores["method"], scores.get("weights", {}), scores.get("intercept", 0.0))
