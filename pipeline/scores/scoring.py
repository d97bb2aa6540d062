"""Score predictions: probabilities [N, classes] against labels, int [N]."""

import math
from collections.abc import Sequence
from pathlib import Path

from pipeline.core.read_table import read_table
from pipeline.scores.calibration import calibration_error, calibration_error_interval

import numpy as np
import pandas as pd
from scipy.special import ndtri

DIGITS = 6  # decimal places of scores in files
ENSEMBLE = "ensemble"  # its name in tables, next to the networks'
QUANTILE = ndtri(0.975)  # of the normal distribution, for 95 % intervals


def predicted_labels(probabilities: np.ndarray) -> np.ndarray:
    """The label with the highest probability in each row, the first one in a tie: int [N]."""
    return np.asarray(probabilities).argmax(axis=1)


def score(probabilities: np.ndarray, labels: np.ndarray, uncalibrated: np.ndarray | None = None) -> dict:
    """Score predictions; `labels` must contain every class.

    `uncalibrated` has the probabilities before calibration; None if there was none. Includes the 95 % intervals of
    accuracy, balanced accuracy and calibration error; log loss is in nats. ROC AUC, balanced accuracy (mean recall) and
    F1 are unweighted means over the classes.
    """
    from sklearn.metrics import log_loss, roc_auc_score  # here, because it is slow: stages print a line first

    calibration = calibration_scores(probabilities, labels)
    before = calibration if uncalibrated is None else calibration_scores(uncalibrated, labels)
    uncalibrated = probabilities if uncalibrated is None else uncalibrated
    classes, predicted = probabilities.shape[1], predicted_labels(probabilities)
    correct, total = int((predicted == labels).sum()), len(labels)
    _, recall, f1, photos = class_rates(predicted, labels, classes)
    means = {
        "log_loss": log_loss(labels, probabilities, labels=range(classes)),
        "roc_auc": np.mean([roc_auc_score(labels == n, probabilities[:, n]) for n in positive_labels(classes)]),
        "balanced_accuracy": recall.mean(),
        **balanced_accuracy_interval(recall, photos),
        "macro_f1": f1.mean(),
        **calibration,
        "uncalibrated_log_loss": log_loss(labels, uncalibrated, labels=range(classes)),
        **{f"uncalibrated_{name}": value for name, value in before.items()},
    }
    return {
        "accuracy": round(correct / total, DIGITS),
        "correct": correct,
        "total": total,
        **accuracy_interval(correct, total),
        "accuracy_sd_over_seeds": round(accuracy_sd_over_seeds(correct / total, total), DIGITS),
        **{name: round(float(value), DIGITS) for name, value in means.items()},
    }


def calibration_scores(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The expected calibration error, with its 95 % interval."""
    low, high = calibration_error_interval(probabilities, labels)
    error = calibration_error(probabilities, labels)
    return {"calibration_error": error, "calibration_error_low": low, "calibration_error_high": high}


def class_rates(predicted: np.ndarray, labels: np.ndarray, classes: int) -> tuple[np.ndarray, ...]:
    """Precision, recall, F1 and number of photos of each class; 0 where there is nothing to divide by."""
    from sklearn.metrics import precision_recall_fscore_support

    rates = precision_recall_fscore_support(labels, predicted, labels=range(classes), zero_division=0)
    return tuple(map(np.asarray, rates))


def positive_labels(classes: int) -> Sequence[int]:
    """The labels with a ROC curve, each against all others. Of two classes only the second: the first's is the same."""
    return [1] if classes == 2 else range(classes)


def accuracy_interval(correct: int, total: int) -> dict[str, float]:
    """`accuracy_low` and `accuracy_high`, the 95 % interval of an accuracy."""
    low, high = wilson_interval(correct / total, total)
    return {"accuracy_low": round(float(low), DIGITS), "accuracy_high": round(float(high), DIGITS)}


def accuracy_sd_over_seeds(accuracy: float, total: int) -> float:
    """The SD of the accuracy on the same photos, expected if a network is trained again with other seeds.

    For two classes, if the seeds are calibrated together: a photo that a share p of them call a cat is a cat with
    probability p, so its expected error is 2p(1 - p), and the variance over seeds of whether it is correct is p(1 - p),
    half of that. With more classes it is less. Jordan, "On the Variance of Neural Network Training with respect to Test
    Sets and Distributions", 2024, https://arxiv.org/abs/2304.01910
    """
    return math.sqrt((1 - accuracy) / (2 * total))


def wilson_interval(share: float | np.ndarray, photos: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lower and upper ends of the 95 % intervals of shares of `photos` (Wilson's score interval).

    Both arguments are scalars or float arrays of one shape, as are the results.
    """
    added = QUANTILE**2 / photos
    centre = (share + added / 2) / (1 + added)
    reach = np.sqrt(added * (share * (1 - share) + added / 4)) / (1 + added)
    return np.clip(centre - reach, 0, 1), np.clip(centre + reach, 0, 1)


def balanced_accuracy_interval(recall: np.ndarray, photos: np.ndarray) -> dict[str, float]:
    """`balanced_accuracy_low` and `balanced_accuracy_high`, its 95 % interval.

    `recall` and `photos` (how many) are those of each class, [classes]. This is Wilson's interval for the effective
    number of photos: that of a simple sample whose accuracy varies as much as the mean recall. Franco, Little, Louis
    and Slud recommend it for stratified samples ("Comparative Study of Confidence Intervals for Proportions in Complex
    Sample Surveys", Journal of Survey Statistics and Methodology 7, 2019, pages 334 to 364); here each class is a
    stratum. To estimate variances, half a correct and half an incorrect photo are added to each class (Jeffreys), so
    that a class without mistakes does not count as certain.
    """
    likely = (recall * photos + 0.5) / (photos + 1)
    variance = (likely * (1 - likely) / photos).sum() / len(photos) ** 2
    effective = likely.mean() * (1 - likely.mean()) / variance
    low, high = wilson_interval(recall.mean(), effective)
    return {"balanced_accuracy_low": float(low), "balanced_accuracy_high": float(high)}


def score_classes(probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> pd.DataFrame:
    """One row per class: class, photos, precision, recall, the recall's 95 % interval (recall_low, recall_high), f1."""
    precision, recall, f1, photos = class_rates(predicted_labels(probabilities), labels, len(classes))
    low, high = wilson_interval(recall, photos)
    rates = {"precision": precision, "recall": recall, "recall_low": low, "recall_high": high, "f1": f1}
    return pd.DataFrame({"class": classes, "photos": photos, **rates}).round(DIGITS)


def confusion_table(probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> pd.DataFrame:
    """One row per photo with its `actual` and `predicted` class, which DVC's confusion plot counts."""
    names = np.array(classes)
    return pd.DataFrame({"actual": names[labels], "predicted": names[predicted_labels(probabilities)]})


def headline(test: dict, validation: dict | None = None) -> dict:
    """The scores that `dvc metrics` and `dvc exp show` show: a few, so that their tables fit into a terminal.

    Only the ensemble has `validation` scores, unless it was fitted on that split: it is what experiments are ranked by.
    So their names are unique, and DVC shows and sorts by `validation_log_loss` without the path of a file.
    """
    metrics = {name: test[name] for name in ("accuracy", "log_loss")}
    if validation:
        metrics |= {f"validation_{name}": validation[name] for name in ("accuracy", "log_loss")}
    return metrics


def write_scores(path: Path, scores: dict[str, dict[str, dict]]) -> None:
    """Write the scores of each network (or the ensemble) on each split as CSV, one row per network and split."""
    rows = [
        {"network": name, "split": split, **values}
        for name, by_split in scores.items()
        for split, values in by_split.items()
    ]
    pd.DataFrame(rows).to_csv(path, index=False)


def write_class_scores(path: Path, class_scores: dict[str, pd.DataFrame]) -> None:
    """Write the tables of `score_classes` of each network (or the ensemble) as one CSV."""
    pd.concat(class_scores, names=["network"]).reset_index("network").to_csv(path, index=False)


def read_scores(*paths: Path) -> pd.DataFrame:
    """The rows of tables that `write_scores` or `write_class_scores` wrote. Raises UserError if one is missing."""
    return pd.concat((read_table(path, ["network"]) for path in paths), ignore_index=True)


def scores_table(scores: dict[str, dict], unequal: bool) -> str:
    """The main scores as a text table, one line per network; with balanced accuracy if the classes are `unequal`."""

    def interval(values: dict, name: str) -> str:
        return f"{values[f'{name}_low']:.4f} to {values[f'{name}_high']:.4f}"

    columns = ["", "accuracy", "correct", "95 % interval", "log loss", "ROC AUC"]
    rows = [
        [
            name,
            f"{values['accuracy']:.6f}",
            f"{values['correct']}/{values['total']}",
            interval(values, "accuracy"),
            f"{values['log_loss']:.4f}",
            f"{values['roc_auc']:.4f}",
        ]
        for name, values in scores.items()
    ]
    if unequal:
        columns[4:4] = ["balanced accuracy", "95 % interval"]
        for row, values in zip(rows, scores.values(), strict=True):
            row[4:4] = [f"{values['balanced_accuracy']:.6f}", interval(values, "balanced_accuracy")]
    return pd.DataFrame(rows, columns=columns).to_string(index=False)
