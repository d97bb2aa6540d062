"""Calibration: fit a temperature so that confidence matches accuracy, and measure how far apart the two are.

Logits are float64 [N, classes], labels int [N]. Dividing all logits by one number, the temperature, changes how
confident a network is, but none of its answers. Guo et al., "On Calibration of Modern Neural Networks", 2017,
https://arxiv.org/abs/1706.04599
"""

import math

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

MIN_SCALE, MAX_SCALE = 1e-12, 1e3  # of logits; without mistakes, the best scale would be infinite
BISECTIONS = 50  # of the scale's logarithm; more would not change the loss
TEMPERATURE_DIGITS = 6  # rounded before use, so that the temperature in a file gives the same results
PRIOR_SD = 0.3  # chosen on halves of validation splits of 50 to 1,500 photos: 1 makes 25 photos too confident
MAX_LOGARITHM = 7  # of a temperature: from 0.001 to 1,000
BINS = 15  # of equal width, as in Guo et al.
RESAMPLES = 1000
NUMBERS_AT_ONCE = 10_000_000  # in memory


def log_loss(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    """The mean log loss, in nats; with `weights` float [N] the weighted mean."""
    losses = -log_softmax(logits, axis=1)[np.arange(len(labels)), labels]
    return float(_mean(losses, weights)) + 0.0  # which turns -0.0 into 0.0


def calibrated_loss(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    """The lowest log loss that any temperature gives, in nats.

    Unlike the log loss itself, it does not depend on a network's overall confidence, which label smoothing and long
    training change. The loss is convex in the scale, so the best scale is where its slope is 0. `weights` are those of
    `log_loss`.
    """
    logits = np.asarray(logits, dtype=float)
    of_labels = _mean(logits[np.arange(len(labels)), labels], weights)
    low, high = math.log(MIN_SCALE), math.log(MAX_SCALE)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        expected = (logits * softmax(logits * math.exp(middle), axis=1)).sum(axis=1)
        slope = _mean(expected, weights) - of_labels
        low, high = (low, middle) if slope > 0 else (middle, high)
    return log_loss(logits * math.exp(low), labels, weights)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature that calibrates `logits`, fitted to photos that the network was not trained on.

    The most probable one, with a normal prior on its logarithm, around 0 and with a standard deviation of PRIOR_SD. The
    prior matters only if there are few mistakes: without any, the log loss alone would lead to infinite confidence. The
    log loss on these photos is never higher than without a temperature. It takes no weights: of photos as they come,
    9 of 10 with a probability of 0.9 should be correct, which is also how the scores measure calibration.
    """
    logits = np.asarray(logits, dtype=float)

    def objective(logarithm: float) -> float:
        return len(labels) * log_loss(logits / math.exp(logarithm), labels) + (logarithm / PRIOR_SD) ** 2 / 2

    found = minimize_scalar(objective, bounds=(-MAX_LOGARITHM, MAX_LOGARITHM), method="bounded").x
    return round(math.exp(found), TEMPERATURE_DIGITS) if objective(found) < objective(0) else 1.0


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The expected calibration error: how far confidence is from accuracy, in bins of confidence, weighted by photos.

    `probabilities` is [N, classes]; the confidence is the highest probability of each row.
    """
    return _calibration_error(*_binned(probabilities, labels))


def calibration_error_interval(probabilities: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of `calibration_error` over photos.

    From a bootstrap with a fixed seed. A resample's error is too high, as the error itself is, because noise in each
    bin counts as miscalibration; so the basic interval is used, which corrects for that (Davison and Hinkley,
    "Bootstrap Methods and their Application", 1997, section 5.2).
    """
    bins, gaps = _binned(probabilities, labels)
    by_bin = np.where(bins[:, None] == np.arange(BINS), gaps[:, None], 0)
    random, errors = np.random.default_rng(1), []
    at_once = max(1, NUMBERS_AT_ONCE // len(bins))
    for start in range(0, RESAMPLES, at_once):
        resamples = min(at_once, RESAMPLES - start)
        how_often = random.multinomial(len(bins), np.full(len(bins), 1 / len(bins)), size=resamples)
        errors.append(np.abs(how_often @ by_bin).sum(axis=1) / len(bins))
    low, high = np.quantile(np.concatenate(errors), [0.025, 0.975])
    error = _calibration_error(bins, gaps)
    return max(0.0, float(2 * error - high)), max(0.0, float(2 * error - low))


def _mean(values: np.ndarray, weights: np.ndarray | None) -> float:
    return values.mean() if weights is None else np.average(values, weights=weights)


def _binned(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bin of each photo, int [N], and its confidence minus 1 if it is correct or 0 if not, float [N]."""
    confidences, predicted = probabilities.max(axis=1), probabilities.argmax(axis=1)
    bins = np.minimum((confidences * BINS).astype(int), BINS - 1)
    return bins, confidences - (predicted == labels)


def _calibration_error(bins: np.ndarray, gaps: np.ndarray) -> float:
    return float(np.abs(np.bincount(bins, weights=gaps, minlength=BINS)).sum() / len(bins))
