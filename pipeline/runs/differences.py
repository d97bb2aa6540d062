"""Compare the answers of trained models on the same photos, and tell differences from chance.

`before` and `after` are arrays [runs, N] of what each run scored on each photo: whether it was correct, or its log
loss. Several runs are one recipe with different seeds.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.signal import convolve
from scipy.stats import binom, norm, t

CONFIDENCE = 0.95
SIGNIFICANT = 0.05  # a smaller p-value is beyond chance
POWER = 0.8
QUANTILE = norm.ppf((1 + CONFIDENCE) / 2)
POWER_QUANTILE = norm.ppf(POWER)


@dataclass(frozen=True)
class Difference:
    """The mean of `after` minus that of `before`, with its 95 % interval; `p` is the p-value of no difference."""

    mean: float
    low: float
    high: float
    p: float


def changes(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """By photo: the share of runs that are correct, after minus before; exactly 0 where they are equal."""
    return _scaled_changes(before, after) / (len(before) * len(after))


def _scaled_changes(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """`changes` as whole numbers."""
    return len(before) * after.sum(axis=0, dtype=int) - len(after) * before.sum(axis=0, dtype=int)


def accuracy_over_photos(before: np.ndarray, after: np.ndarray) -> Difference:
    """The difference in accuracy; the interval covers the chance of which photos were chosen.

    The interval is Bonett and Price's: Wald's after adding a photo that was corrected and one that was broken
    ("Adjusted Wald Confidence Interval for a Difference of Binomial Proportions Based on Paired Data", Journal of
    Educational and Behavioral Statistics 37, 2012, pages 479 to 488; recommended by Fagerland, Lydersen and Laake,
    Statistics in Medicine 33, 2014, pages 2850 to 2875). It is good with few changed photos, where Wald's own is too
    narrow. With several runs a photo's difference is that of the means, and the added ones are as large as is usual.
    """
    differences = changes(before, after)
    squares = differences[differences != 0] ** 2
    photos = len(differences) + 2
    centre = differences.sum() / photos
    added = 2 * squares.mean() if len(squares) else 2
    error = math.sqrt(((squares.sum() + added) / photos - centre**2) / photos)
    low, high = max(-1.0, centre - QUANTILE * error), min(1.0, centre + QUANTILE * error)
    return Difference(float(differences.mean()), float(low), float(high), sign_flip_p(before, after))


def sign_flip_p(before: np.ndarray, after: np.ndarray) -> float:
    """The two-sided exact p-value of no difference in correct answers; for two runs, McNemar's exact test.

    If both recipes were equally good, each photo's difference could as well have the opposite sign. This is the
    probability that random signs give a sum at least as far from 0 as the actual one.
    """
    differences = _scaled_changes(before, after)
    distribution, bound = np.ones(1), 0  # of the sum, from -bound to bound
    for size, photos in Counter(np.abs(differences[differences != 0]).tolist()).items():
        step = np.zeros(2 * size * photos + 1)
        step[:: 2 * size] = binom.pmf(range(photos + 1), photos, 0.5)
        distribution, bound = convolve(distribution, step), bound + size * photos
    as_far = np.abs(np.arange(-bound, bound + 1)) >= abs(differences.sum())
    return min(1.0, float(distribution[as_far].clip(0).sum()))


def log_loss_over_photos(before: np.ndarray, after: np.ndarray) -> Difference:
    """The difference in log loss, over the chance of which photos were chosen: the paired t-test and its interval."""
    differences = after.mean(axis=0) - before.mean(axis=0)
    variance = differences.var(ddof=1) / len(differences)
    return _t_test(differences.mean(), variance, len(differences) - 1)


def over_seeds(before: np.ndarray, after: np.ndarray) -> Difference | None:
    """The difference in the runs' means, over the chance of the seeds: Welch's t-test and its interval.

    None if a recipe has only one run, or if no run differs from the others of its recipe.
    """
    before, after = before.mean(axis=1), after.mean(axis=1)
    if min(len(before), len(after)) < 2 or (np.ptp(before) == 0 and np.ptp(after) == 0):
        return None
    variances = [means.var(ddof=1) / len(means) for means in (before, after)]
    parts = [variance**2 / (len(means) - 1) for variance, means in zip(variances, (before, after), strict=True)]
    return _t_test(after.mean() - before.mean(), sum(variances), sum(variances) ** 2 / sum(parts))


def _t_test(mean: float, variance: float, freedom: float) -> Difference:
    """A difference whose estimate has this variance, with these degrees of freedom."""
    if variance == 0:
        return Difference(float(mean), float(mean), float(mean), float(mean == 0))
    error = math.sqrt(variance)
    low, high = t.interval(CONFIDENCE, freedom, loc=mean, scale=error)
    return Difference(float(mean), float(low), float(high), float(2 * t.sf(abs(mean) / error, freedom)))


def photos_needed(before: np.ndarray, after: np.ndarray) -> int | None:
    """How many photos McNemar's exact test would need to see this difference in accuracy with a power of 80 %.

    Connor's formula ("Sample Size for Testing Differences in Proportions for the Paired-Sample Design", Biometrics 43,
    1987, pages 207 to 211) with a continuity correction, because the exact test needs a few more. It supposes that the
    same share of photos would change. None if there is no difference.
    """
    differences = changes(before, after)
    mean, square = differences.mean(), (differences**2).mean()
    if _scaled_changes(before, after).sum() == 0:
        return None
    spread = QUANTILE * math.sqrt(square) + POWER_QUANTILE * math.sqrt(max(0.0, square - mean**2))
    # The photos n for which the correction takes 1 from the n * |mean| that changed: n * |mean| - 1 = sqrt(n) * spread
    return math.ceil(((spread + math.sqrt(spread**2 + 4 * abs(mean))) / (2 * mean)) ** 2)


def visible_difference(before: np.ndarray, after: np.ndarray) -> float:
    """The smallest difference in accuracy that these photos would show with a power of 80 %, if this share changes."""
    differences = changes(before, after)
    return float((QUANTILE + POWER_QUANTILE) * math.sqrt((differences**2).mean() / len(differences)))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's method, in the same order."""
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.maximum.accumulate(factors * np.asarray(p_values)[order]).clip(max=1)
    return corrected.tolist()
