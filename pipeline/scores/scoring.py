"""Score predictions."""

from pipeline.core import CLASSES

import numpy as np
import pandas as pd
from scipy.special import expit
from scipy.stats import binomtest
from sklearn.metrics import log_loss, precision_recall_fscore_support, roc_auc_score


def margin(logits: pd.DataFrame) -> pd.Series:
    """Column `logit_dog` minus `logit_cat`: positive for dog, negative for cat."""
    return logits["logit_dog"] - logits["logit_cat"]


def probability_of_dog(logits: pd.DataFrame) -> pd.Series:
    """The probability of dog, 0 to 1: the softmax of columns `logit_cat` and `logit_dog`."""
    return expit(margin(logits))


def label_numbers(rows: pd.DataFrame) -> np.ndarray:
    """Column `label` (cat, dog) as int [N]: 0 cat, 1 dog."""
    return rows["label"].map(CLASSES.index).to_numpy()


def predicted_labels(probabilities: np.ndarray | float) -> np.ndarray:
    """Labels (0 cat, 1 dog) from probabilities of dog."""
    return (np.asarray(probabilities) > 0.5).astype(int)


def score(probabilities: np.ndarray, labels: np.ndarray) -> dict:
    """Score probabilities of dog [N] against labels [N], which must contain both classes.

    Includes the accuracy's 95 % interval, and precision and recall for each class; log loss is in nats.
    """
    predicted = predicted_labels(probabilities)
    correct, total = int((predicted == labels).sum()), len(labels)
    precision, recall, _, _ = precision_recall_fscore_support(labels, predicted, labels=[0, 1], zero_division=0)
    return {
        "accuracy": round(correct / total, 6),
        "correct": correct,
        "total": total,
        **accuracy_interval(correct, total),
        "log_loss": round(float(log_loss(labels, probabilities, labels=[0, 1])), 6),
        "roc_auc": round(float(roc_auc_score(labels, probabilities)), 6),
        "precision": {name: round(float(value), 6) for name, value in zip(CLASSES, precision, strict=True)},
        "recall": {name: round(float(value), 6) for name, value in zip(CLASSES, recall, strict=True)},
    }


def accuracy_interval(correct: int, total: int) -> dict[str, float]:
    """`accuracy_low` and `accuracy_high`, the 95 % interval of an accuracy (Wilson score interval)."""
    interval = binomtest(correct, total).proportion_ci(confidence_level=0.95, method="wilson")
    return {"accuracy_low": round(interval.low, 6), "accuracy_high": round(interval.high, 6)}


def confusion(probabilities: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    """One row per photo with its `actual` and `predicted` class, which DVC's confusion plot counts."""
    names = np.array(CLASSES)
    return pd.DataFrame({"actual": names[labels], "predicted": names[predicted_labels(probabilities)]})


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
