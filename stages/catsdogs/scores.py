"""How good predictions are."""

from catsdogs import CLASSES

import numpy as np
import pandas as pd
from scipy.special import expit
from scipy.stats import binomtest
from sklearn.metrics import log_loss, precision_recall_fscore_support, roc_auc_score


def margin(logits: pd.DataFrame) -> pd.Series:
    """How far a network leans towards dog: column `logit_dog` less `logit_cat`."""
    return logits["logit_dog"] - logits["logit_cat"]


def probability_of_dog(logits: pd.DataFrame) -> pd.Series:
    """The softmax of columns `logit_cat` and `logit_dog`: from 0 (cat) to 1 (dog)."""
    return expit(margin(logits))


def label_numbers(rows: pd.DataFrame) -> np.ndarray:
    """Column `label` (cat, dog) as numbers: int [N], 0 cat and 1 dog."""
    return rows["label"].map(CLASSES.index).to_numpy()


def predicted_labels(probabilities: np.ndarray | float) -> np.ndarray:
    """Labels (0 cat, 1 dog) from probabilities of dog."""
    return (np.asarray(probabilities) > 0.5).astype(int)


def score(probabilities: np.ndarray, labels: np.ndarray) -> dict:
    """Scores of probabilities of dog [N] against labels [N], both classes present.

    `accuracy_low` and `accuracy_high` bound the accuracy's 95 % interval (Wilson's score interval); precision and
    recall stand for each class; log loss is in nats.
    """
    predicted = predicted_labels(probabilities)
    correct, total = int((predicted == labels).sum()), len(labels)
    interval = binomtest(correct, total).proportion_ci(confidence_level=0.95, method="wilson")
    precision, recall, _, _ = precision_recall_fscore_support(labels, predicted, labels=[0, 1], zero_division=0)
    return {
        "accuracy": round(correct / total, 6),
        "correct": correct,
        "total": total,
        "accuracy_low": round(interval.low, 6),
        "accuracy_high": round(interval.high, 6),
        "log_loss": round(float(log_loss(labels, probabilities, labels=[0, 1])), 6),
        "roc_auc": round(float(roc_auc_score(labels, probabilities)), 6),
        "precision": {name: round(float(value), 6) for name, value in zip(CLASSES, precision, strict=True)},
        "recall": {name: round(float(value), 6) for name, value in zip(CLASSES, recall, strict=True)},
    }


def confusion(probabilities: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    """A row for each photo with its `actual` and `predicted` class, as DVC's confusion plot counts them."""
    names = np.array(CLASSES)
    return pd.DataFrame({"actual": names[labels], "predicted": names[predicted_labels(probabilities)]})


def scores_table(scores: dict[str, dict]) -> str:
    """The main scores of each network, a line each, for people to read."""
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
