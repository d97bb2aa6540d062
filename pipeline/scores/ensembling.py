"""The ensemble: its combination, its best member, and what it changes compared with a member."""

from pipeline.scores.combining import FITTED, Combination, fit_weights
from pipeline.scores.predictions import PROBABILITY_DIGITS, Predictions, probability_columns
from pipeline.scores.scoring import predicted_labels

import numpy as np
import pandas as pd
from scipy.stats import binomtest


def make_combination(method: str, validation: Predictions) -> Combination:
    """The combination of all networks; fitted_weights is fitted on validation."""
    if method != FITTED:
        return Combination(method)
    logits = np.stack(list(validation.logits.values()))
    return fit_weights(logits, validation.labels, list(validation.logits), validation.classes)


def find_best_member(validation: Predictions) -> str:
    """The network with the highest accuracy on validation; the first one if there are several."""
    correct = {
        name: (predicted_labels(probabilities) == validation.labels).sum()
        for name, probabilities in validation.probabilities.items()
    }
    return max(correct, key=correct.get)


def describe_combination(combination: Combination, members: list[str], classes: list[str]) -> dict:
    """What combination.json says of the combination; weights and intercepts only if there are any."""
    fitted = {"weights": combination.weights, "intercepts": combination.intercepts} if combination.weights else {}
    return {"method": combination.method, "members": members, "classes": classes, **fitted}


def compare_answers(member: np.ndarray, combined: np.ndarray, labels: np.ndarray) -> dict:
    """Compare the ensemble with a member, given the probabilities of both.

    `corrected` counts the member's mistakes that the ensemble corrects, `broken` the mistakes that only the ensemble
    makes. `mcnemar_p` is the p-value of McNemar's exact test (a two-sided binomial test; 1.0 if nothing changed).
    """
    member_correct, combined_correct = (predicted_labels(p) == labels for p in (member, combined))
    corrected = int((combined_correct & ~member_correct).sum())
    broken = int((member_correct & ~combined_correct).sum())
    changed = corrected + broken
    p_value = binomtest(corrected, changed).pvalue if changed else 1.0
    return {"corrected": corrected, "broken": broken, "mcnemar_p": round(float(p_value), 6)}


def probabilities_table(split: str, predictions: Predictions, probabilities: np.ndarray) -> pd.DataFrame:
    """One row per photo of a split: photo, label, split and the probability of each class."""
    columns = pd.DataFrame(probabilities.round(PROBABILITY_DIGITS), columns=probability_columns(predictions.classes))
    return predictions.photos.assign(split=split).join(columns)
