"""Score predictions: probabilities [N, classes] against labels, int [N]."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.core.files import require_file

import numpy as np
import pandas as pd
from sklearn.metrics import log_loss, precision_recall_fscore_support, roc_auc_score

DIGITS = 6  # decimal places of scores in files
ENSEMBLE = "ensemble"  # its name in tables, next to the networks'


def predicted_labels(probabilities: np.ndarray) -> np.ndarray:
    """The label with the highest probability in each row, the first of equals: int [N]."""
    return np.asarray(probabilities).argmax(axis=1)


def score(probabilities: np.ndarray, labels: np.ndarray) -> dict:
    """Score predictions; `labels` must contain every class.

    Includes the accuracy's 95 % interval; log loss is in nats. ROC AUC, balanced accuracy (the recall) and F1 are
    unweighted means over the classes.
    """
    classes, predicted = probabilities.shape[1], predicted_labels(probabilities)
    correct, total = int((predicted == labels).sum()), len(labels)
    _, recall, f1, _ = class_rates(predicted, labels, classes)
    means = {
        "log_loss": log_loss(labels, probabilities, labels=range(classes)),
        "roc_auc": np.mean([roc_auc_score(labels == n, probabilities[:, n]) for n in positive_labels(classes)]),
        "balanced_accuracy": recall.mean(),
        "macro_f1": f1.mean(),
    }
    return {
        "accuracy": round(correct / total, DIGITS),
        "correct": correct,
        "total": total,
        **accuracy_interval(correct, total),
        **{name: round(float(value), DIGITS) for name, value in means.items()},
    }


def class_rates(predicted: np.ndarray, labels: np.ndarray, classes: int) -> tuple[np.ndarray, ...]:
    """Precision, recall, F1 and number of photos of each class; 0 where there is nothing to divide by."""
    return precision_recall_fscore_support(labels, predicted, labels=range(classes), zero_division=0)


def positive_labels(classes: int) -> Sequence[int]:
    """The labels with a ROC curve, each against all others. Of two classes only the second: the first's is the same."""
    return [1] if classes == 2 else range(classes)


def accuracy_interval(correct: int, total: int) -> dict[str, float]:
    """`accuracy_low` and `accuracy_high`, the 95 % interval of an accuracy (Wilson score interval)."""
    from scipy.stats import binomtest  # here, because it takes half a second

    interval = binomtest(correct, total).proportion_ci(confidence_level=0.95, method="wilson")
    return {"accuracy_low": round(interval.low, DIGITS), "accuracy_high": round(interval.high, DIGITS)}


def score_classes(probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> pd.DataFrame:
    """One row per class, with columns class, photos, precision, recall and f1."""
    precision, recall, f1, photos = class_rates(predicted_labels(probabilities), labels, len(classes))
    rates = {"precision": precision, "recall": recall, "f1": f1}
    return pd.DataFrame({"class": classes, "photos": photos, **rates}).round(DIGITS)


def confusion(probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> pd.DataFrame:
    """One row per photo with its `actual` and `predicted` class, which DVC's confusion plot counts."""
    names = np.array(classes)
    return pd.DataFrame({"actual": names[labels], "predicted": names[predicted_labels(probabilities)]})


def headline(test: dict, validation: dict | None) -> dict:
    """The scores that `dvc metrics` shows; without `validation` for a model that was fitted on that split."""
    metrics = {name: test[name] for name in ("accuracy", "log_loss", "roc_auc")}
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
    text = {"network": str, "split": str, "class": str}  # a class may be named 1
    return pd.concat(pd.read_csv(require_file(path), dtype=text, keep_default_na=False) for path in paths)


def scores_table(scores: dict[str, dict]) -> str:
    """The main scores as a text table, one line per network."""
    rows = [
        {
            "": name,
            "accuracy": f"{values['accuracy']:.6f}",
            "correct": f"{values['correct']}/{values['total']}",
            "95 % interval": f"{values['accuracy_low']:.4f} to {values['accuracy_high']:.4f}",
            "log loss": f"{values['log_loss']:.4f}",
            "ROC AUC": f"{values['roc_auc']:.4f}",
        }
        for name, values in scores.items()
    ]
    return pd.DataFrame(rows).to_string(index=False)
