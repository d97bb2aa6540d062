"""Scores that vary with a threshold: accuracy by confidence (reliability), and the ROC curve."""

from collections.abc import Mapping
from itertools import pairwise

from pipeline.scores.scoring import DIGITS, accuracy_interval, positive_labels, predicted_labels

import numpy as np
import pandas as pd

CONFIDENCE_EDGES = (0, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1)  # of the reliability table's ranges
FALSE_POSITIVE_RATES = np.linspace(0, 1, 1001)  # where the curves of several classes are averaged


def confidence(probabilities: np.ndarray) -> np.ndarray:
    """The confidence of predictions [N], which is the probability of the predicted class: 1 / classes to 1."""
    return np.asarray(probabilities).max(axis=1)


def confidence_edges(classes: int) -> tuple[float, ...]:
    """The edges of the reliability table's ranges; with two classes the confidence is at least 0.5."""
    return tuple(edge for edge in CONFIDENCE_EDGES if edge >= 0.5 or classes > 2)


def count_correct(probabilities: np.ndarray, labels: np.ndarray, least: float, below: float) -> dict:
    """Count the predictions with a confidence from `least` to below `below` (a `below` of 1 includes 1).

    Unless there are none, adds their mean confidence, and their accuracy with its 95 % interval.
    """
    confidences = confidence(probabilities)
    chosen = (confidences >= least) & ((confidences < below) | (below == 1))
    photos, correct = int(chosen.sum()), int((predicted_labels(probabilities) == labels)[chosen].sum())
    counted = {"confidence_from": least, "confidence_to": below, "photos": photos, "correct": correct}
    if not photos:
        return counted
    return counted | {
        "confidence": round(float(confidences[chosen].mean()), DIGITS),
        "accuracy": round(correct / photos, DIGITS),
        **accuracy_interval(correct, photos),
    }


def calibration(counted: Mapping[str, float]) -> str:
    """Whether predictions, counted by `count_correct`, are overconfident, underconfident or consistent.

    Consistent means that the mean confidence is within the 95 % interval of the accuracy.
    """
    if counted["confidence"] > counted["accuracy_high"]:
        return "overconfident"
    return "underconfident" if counted["confidence"] < counted["accuracy_low"] else "consistent"


def reliability_table(probabilities: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    """A row of `count_correct` for each range of `confidence_edges` that contains predictions."""
    edges = confidence_edges(probabilities.shape[1])
    rows = [count_correct(probabilities, labels, least, below) for least, below in pairwise(edges)]
    return pd.DataFrame([row for row in rows if row["photos"]])


def roc_table(probabilities: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    """The ROC curve: `false_positive_rate` and `true_positive_rate`, from (0, 0) to (1, 1).

    For two classes the corners of the second one's curve; otherwise the mean of the curves of each class against all
    others, at each of FALSE_POSITIVE_RATES.
    """
    from sklearn.metrics import roc_curve  # here, because it is slow, and evaluate needs only the rest of this module

    classes = probabilities.shape[1]
    curves = [roc_curve(labels == n, probabilities[:, n])[:2] for n in positive_labels(classes)]
    if len(curves) == 1:
        [(false_positive_rate, true_positive_rate)] = curves
    else:
        mean = np.mean([np.interp(FALSE_POSITIVE_RATES, *curve) for curve in curves], axis=0)
        false_positive_rate, true_positive_rate = np.append(0, FALSE_POSITIVE_RATES), np.append(0, mean)
    return pd.DataFrame({"false_positive_rate": false_positive_rate, "true_positive_rate": true_positive_rate}).round(
        DIGITS
    )
