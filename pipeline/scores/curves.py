"""Scores that vary with a threshold: accuracy by confidence (reliability), and the ROC curve."""

from itertools import pairwise

from pipeline.scores.scoring import accuracy_interval, predicted_labels

import numpy as np
import pandas as pd
from sklearn.metrics import roc_curve

SURENESS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1)  # edges of the confidence ranges of the reliability table


def sureness(probabilities: pd.Series) -> pd.Series:
    """The confidence of predictions, which is the probability of the predicted class: 0.5 to 1."""
    return np.maximum(probabilities, 1 - probabilities)


def count_correct(probabilities: pd.Series, labels: np.ndarray, least: float, below: float) -> dict:
    """Count the predictions with a confidence from `least` to below `below` (a `below` of 1 includes 1).

    Unless there are none, adds their mean confidence, and their accuracy with its 95 % interval.
    """
    confidence = sureness(probabilities)
    chosen = (confidence >= least) & ((confidence < below) | (below == 1))
    photos, correct = int(chosen.sum()), int((predicted_labels(probabilities) == labels)[chosen].sum())
    counted = {"sure_from": least, "sure_to": below, "photos": photos, "right": correct}
    if not photos:
        return counted
    return counted | {
        "sureness": round(float(confidence[chosen].mean()), 6),
        "accuracy": round(correct / photos, 6),
        **accuracy_interval(correct, photos),
    }


def reliability_table(probabilities: pd.Series, labels: np.ndarray) -> pd.DataFrame:
    """A row of `count_correct` for each range of SURENESS that contains predictions."""
    rows = [count_correct(probabilities, labels, least, below) for least, below in pairwise(SURENESS)]
    return pd.DataFrame([row for row in rows if row["photos"]])


def roc_table(probabilities: pd.Series, labels: np.ndarray) -> pd.DataFrame:
    """The corners of the ROC curve, with dog as the positive class."""
    false_positive_rate, true_positive_rate, _ = roc_curve(labels, probabilities)
    return pd.DataFrame(
        {"false_positive_rate": false_positive_rate.round(6), "true_positive_rate": true_positive_rate.round(6)}
    )
