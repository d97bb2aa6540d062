"""pipeline/scores/calibration.py: temperatures and calibration errors, on logits whose right values are known."""

from pipeline.scores.calibration import (
    calibrated_loss,
    calibration_error,
    calibration_error_interval,
    fit_temperature,
    log_loss,
)

import numpy as np
import pytest
from scipy.special import softmax


def calibrated(photos: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn with exactly the probabilities that they give."""
    random = np.random.default_rng(seed)
    logits = 4 * random.normal(size=(photos, classes))
    chances = softmax(logits, axis=1).cumsum(axis=1)
    return logits, (chances < random.random((photos, 1))).sum(axis=1).clip(max=classes - 1)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_fit_temperature_undoes_what_made_logits_too_confident_or_not_confident_enough(
    temperature: float, classes: int
) -> None:
    logits, labels = calibrated(20_000, classes, seed=1)
    assert fit_temperature(logits * temperature, labels) == pytest.approx(temperature, rel=0.05)
    assert calibrated_loss(logits * temperature, labels) == pytest.approx(log_loss(logits, labels), abs=1e-3)


def test_the_calibrated_loss_is_the_lowest_of_all_temperatures() -> None:
    random = np.random.default_rng(1)
    logits = random.normal(size=(300, 4))
    labels = np.where(random.random(300) < 0.3, random.integers(4, size=300), logits.argmax(axis=1))
    losses = [log_loss(scale * logits, labels) for scale in np.logspace(-2, 1, 3000)]
    for confidence in (0.05, 1, 20):  # in the network, which must not matter
        assert calibrated_loss(confidence * logits, labels) == pytest.approx(min(losses), abs=1e-6)
    assert calibrated_loss(logits, (logits.argmax(axis=1) + 1) % 4) == pytest.approx(np.log(4), abs=1e-3)  # all wrong
    assert calibrated_loss(10 * np.eye(4), np.arange(4)) == 0


def test_a_weight_counts_a_photo_as_often_as_it_says() -> None:
    logits, labels = calibrated(300, 3, seed=1)
    weights = np.array([1, 2, 5])[labels]
    repeated = [of.repeat(weights, axis=0) for of in (2 * logits, labels)]
    for loss in (log_loss, calibrated_loss):
        assert loss(2 * logits, labels, weights) == pytest.approx(loss(*repeated), abs=1e-9)
        assert abs(loss(2 * logits, labels, weights) - loss(2 * logits, labels)) > 0.005


def test_fit_temperature_never_raises_the_log_loss_it_is_fitted_to() -> None:
    for seed in range(200):
        logits, labels = calibrated(2 + seed % 20, 2 + seed % 3, seed)
        temperature = fit_temperature(logits, labels)
        assert log_loss(logits / temperature, labels) <= log_loss(logits, labels) + 1e-9


def test_fit_temperature_stays_moderate_without_a_mistake_and_without_a_correct_answer() -> None:
    logits = np.array([[0.0, 6.0]] * 30)
    assert 0.5 < fit_temperature(logits, np.full(30, 1)) <= 1
    assert 1 < fit_temperature(logits, np.full(30, 0)) <= 1000
    assert fit_temperature(np.zeros((30, 2)), np.full(30, 0)) == 1.0


def test_calibration_error_is_the_gap_between_confidence_and_accuracy_in_bins() -> None:
    probabilities = np.array([[0.9, 0.1]] * 10 + [[0.35, 0.65]] * 10)
    labels = np.array([0] * 7 + [1] * 3 + [1] * 5 + [0] * 5)
    assert calibration_error(probabilities, labels) == pytest.approx((0.2 + 0.15) / 2)
    assert calibration_error(np.eye(2)[labels], labels) == 0.0


@pytest.mark.slow
def test_calibration_error_interval_covers_the_true_error() -> None:
    logits, labels = calibrated(200_000, 2, seed=1)
    true = calibration_error(softmax(2 * logits, axis=1), labels)
    covered = 0
    for seed in range(40):
        logits, labels = calibrated(500, 2, seed)
        low, high = calibration_error_interval(softmax(2 * logits, axis=1), labels)
        covered += low <= true <= high
    assert covered >= 35
