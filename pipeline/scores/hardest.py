"""The photos that are hardest for the ensemble, which the report shows."""

from functools import reduce

from pipeline.scores.combining import FITTED, METHODS
from pipeline.scores.curves import confidence
from pipeline.scores.ensembling import make_combination
from pipeline.scores.predictions import PROBABILITY_DIGITS, Predictions
from pipeline.scores.scoring import predicted_labels

import numpy as np

WORST, LEAST_CONFIDENT = 24, 12  # photos shown


def hardest(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The rows of all photos shown, in ascending order; the arguments are those of `worst_mistakes`."""
    return np.union1d(worst_mistakes(probabilities, labels), least_confident(probabilities))


def hardest_with_any_method(validation: Predictions, test: Predictions) -> np.ndarray:
    """The rows of test that `hardest` returns with any ensemble.method except fitted_weights, which is slow to fit."""
    shown = []
    for method in METHODS:
        if method != FITTED:
            combined = make_combination(method, validation)(list(test.logits.values()))
            shown.append(hardest(combined.round(PROBABILITY_DIGITS), test.labels))
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
