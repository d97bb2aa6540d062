"""Combine the networks' predictions, score the combination, and compare it with its best member.

Usage, from the project's root: python stages/ensemble.py
Reads metrics/predictions.csv, and runs no network; writes metrics/ensemble.json, metrics/confusion_ensemble.csv and
metrics/ensemble_predictions.csv (a row for each photo of validation and test: the ensemble's probability of dog).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out


from catsdogs.combining import ENSEMBLE_PREDICTIONS, ENSEMBLE_SCORES, Combination, fit_weights
from catsdogs.errors import UserError
from catsdogs.files import write_json, written_whole
from catsdogs.params import read_params
from catsdogs.process import run_stage
from catsdogs.scores import confusion, label_numbers, margin, predicted_labels, score, scores_table

import numpy as np
import pandas as pd
from scipy.special import expit
from scipy.stats import binomtest

PREDICTIONS = Path("metrics/predictions.csv")


def main() -> None:
    method = read_params().ensemble.method
    predictions = read_predictions()
    validation, validation_labels = margins_of(predictions, "validation")
    test, test_labels = margins_of(predictions, "test")

    if method == "fitted_weights":
        combination = fit_weights(validation.to_numpy(), validation_labels, list(validation))  # never sees test
        own_scores = {"weights": combination.weights, "intercept": combination.intercept}
    else:
        combination = Combination(method)
        # Of no use for fitted weights, which have seen the validation photos.
        validation_scores = score(combination(validation.to_numpy().T), validation_labels)
        own_scores = {f"validation_{key}": validation_scores[key] for key in ("accuracy", "log_loss")}
    combined = combination(test.to_numpy().T)

    members_on_validation = {name: score(expit(validation[name]), validation_labels) for name in validation}
    best_member = max(members_on_validation, key=lambda name: members_on_validation[name]["accuracy"])
    scores = {
        **score(combined, test_labels),
        **own_scores,
        "method": method,
        "members": ", ".join(test.columns),  # DVC shows no lists
        "best_member": best_member,
        **compare(expit(test[best_member]), combined, test_labels),
    }
    with written_whole() as write_to:
        write_json(write_to(ENSEMBLE_SCORES), scores)
        probabilities = pd.concat(
            margins.index.to_frame(index=False).assign(
                split=split, probability_of_dog=combination(margins.to_numpy().T)
            )
            for split, margins in (("validation", validation), ("test", test))
        )
        probabilities.to_csv(write_to(ENSEMBLE_PREDICTIONS), index=False, float_format="%.9f")
        confusion(combined, test_labels).to_csv(write_to(Path("metrics/confusion_ensemble.csv")), index=False)

    members = {name: score(expit(test[name]), test_labels) for name in test}
    print(scores_table({**members, f"ensemble ({method})": scores}))
    print(
        f"against {best_member}, its best member on validation, photos put right: {scores['put_right']}, "
        f"put wrong: {scores['put_wrong']} (McNemar's exact test: p = {scores['mcnemar_p']:.3g})"
    )


def read_predictions() -> pd.DataFrame:
    try:
        return pd.read_csv(PREDICTIONS)
    except FileNotFoundError:
        raise UserError(f"there is no {PREDICTIONS}; `dvc repro evaluate` writes it") from None


def margins_of(predictions: pd.DataFrame, split: str) -> tuple[pd.DataFrame, np.ndarray]:
    """A split's margins, a row for each photo and a column for each network, and its labels: int [N], 0 cat, 1 dog."""
    rows = predictions[predictions["split"] == split].assign(margin=margin)
    margins = rows.pivot(index=["photo", "label"], columns="network", values="margin")[rows["network"].unique()]
    return margins, label_numbers(margins.index.to_frame())


def compare(member: np.ndarray, combined: np.ndarray, labels: np.ndarray) -> dict:
    """What the ensemble changed against a member, from the probabilities of dog of both.

    `mcnemar_p` is the exact probability of changes at least as one-sided if right and wrong were equally likely
    (McNemar's test as a two-sided binomial test; 1.0 where nothing changed).
    """
    member_correct, combined_correct = (predicted_labels(p) == labels for p in (member, combined))
    put_right = int((combined_correct & ~member_correct).sum())
    put_wrong = int((member_correct & ~combined_correct).sum())
    changed = put_right + put_wrong
    p_value = binomtest(put_right, changed).pvalue if changed else 1.0
    return {"put_right": put_right, "put_wrong": put_wrong, "mcnemar_p": round(float(p_value), 6)}


if __name__ == "__main__":
    run_stage(main)
