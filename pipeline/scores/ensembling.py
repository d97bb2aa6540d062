"""The ensemble: its combination, its best member, and what it changes compared with a member."""

from dataclasses import replace

from pipeline.scores.calibration import fit_temperature
from pipeline.scores.combining import FITTED, MEANS, Combination, fit_weights, repeats_member
from pipeline.scores.predictions import PROBABILITY_DIGITS, Predictions, probability_columns
from pipeline.scores.scoring import predicted_labels

import numpy as np
import pandas as pd
from scipy.special import log_softmax
from scipy.stats import binomtest


def make_combination(method: str, validation: Predictions) -> Combination:
    """The combination of all networks; its weights, or the temperature of a mean, are fitted on validation."""
    networks, logits = list(validation.logits), np.stack(list(validation.logits.values()))
    if method == FITTED:
        return fit_weights(logits, validation.labels, networks, validation.classes)
    if method not in MEANS or repeats_member(method, networks):  # a single network has been calibrated in training
        return Combination(method)
    means = {
        "mean_logits": logits.mean(axis=0),
        "mean_probabilities": np.logaddexp.reduce(log_softmax(logits, axis=2)) - np.log(len(networks)),
    }
    return Combination(method, temperature=fit_temperature(means[method], validation.labels))


def uncalibrated(combination: Combination, predictions: Predictions) -> np.ndarray | None:
    """The ensemble's probabilities [N, classes] without its temperature; None if it has none, or 1."""
    if combination.temperature == 1:
        return None
    return replace(combination, temperature=1.0)(list(predictions.logits.values()))


def find_best_member(scores: pd.DataFrame) -> str:
    """The network with the lowest log loss on validation, the first one in a tie; `scores` are all networks'.

    By this score `train` chooses what it keeps, and experiments are ranked: with few photos many accuracies are equal.
    """
    validation = scores[scores["split"] == "validation"]
    return str(validation.loc[validation["log_loss"].idxmin(), "network"])


def describe_combination(combination: Combination, members: list[str], classes: list[str]) -> dict:
    """What combination.json says of the combination; the temperature or the weights only if it has them."""
    fitted: dict = {"temperature": combination.temperature} if combination.method in MEANS else {}
    if combination.weights:
        fitted = {"weights": combination.weights, "intercepts": combination.intercepts}
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
