"""The photos that are hardest for the ensemble, which the report shows."""

from collections.abc import Sequence
from functools import reduce

from pipeline.scores.combining import FITTED, METHODS, Combination
from pipeline.scores.curves import confidence
from pipeline.scores.predictions import PROBABILITY_DIGITS
from pipeline.scores.scoring import predicted_labels

import numpy as np

WORST, LEAST_CONFIDENT = 24, 12  # photos shown


def hardest(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The rows of all photos shown, in ascending order; the arguments are those of `worst_mistakes`."""
    return np.union1d(worst_mistakes(probabilities, labels), least_confident(probabilities))


def hardest_with_any_method(logits: Sequence[np.ndarray], labels: np.ndarray) -> np.ndarray:
    """The rows that `hardest` returns with any ensemble.method except fitted_weights, which is slow to fit, sorted.

    `logits` has a float64 [N, classes] for each network; `labels` is int [N].
    """
    shown = [
        hardest(Combination(method)(logits).round(PROBABILITY_DIGITS), labels) for method in METHODS if method != FITTED
    ]
    return reduce(np.union1d, shown)


def worst_mistakes(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The rows of the most confident mistakes, the most confident first.

    `probabilities` is [N, classes], `labels` int [N].
    """
    mistakes = np.flatnonzero(predicted_labels(probabilities) != labels)
    return mistakes[(-confidence(probabilities[mistakes])).argsort(kind="stable")[:WORST]]


def least_confident(probabilities: np.ndarray) -> np.ndarray:
    """The rows of the least confident predictions, the least confident first; `probabilities` is [N, classes]."""
    return confidence(probabilities).argsort(kind="stable")[:LEAST_CONFIDENT]
