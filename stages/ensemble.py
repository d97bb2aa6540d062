"""Combine the networks' predictions, score the ensemble, and compare it with its best member.

Reads metrics/predictions.csv and runs no network; writes metrics/ensemble.json, metrics/confusion_ensemble.csv and
metrics/ensemble_predictions.csv (the ensemble's probability of dog, one row per photo of validation and test).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

from dataclasses import dataclass

from pipeline.core.command_line import read_arguments
from pipeline.core.files import atomic_write, require_file, write_json
from pipeline.core.params import read_params
from pipeline.core.paths import ENSEMBLE_CONFUSION, ENSEMBLE_PREDICTIONS, ENSEMBLE_SCORES, PREDICTIONS
from pipeline.core.process import run_stage
from pipeline.scores.combining import Combination, fit_weights
from pipeline.scores.scoring import confusion, label_numbers, margin, predicted_labels, score, scores_table

import numpy as np
import pandas as pd
from scipy.special import expit
from scipy.stats import binomtest


@dataclass(frozen=True)
class Split:
    """The networks' predictions on a split: `margins`, one row per photo and one column per network, and `labels`."""

    margins: pd.DataFrame
    labels: np.ndarray  # int [N], 0 cat, 1 dog

    def combined(self, combination: Combination) -> np.ndarray:
        """The ensemble's probabilities of dog [N]."""
        return combination(self.margins.to_numpy().T)

    def member_scores(self) -> dict[str, dict]:
        return {name: score(expit(self.margins[name]), self.labels) for name in self.margins}


def main() -> None:
    read_arguments(__doc__)
    method = read_params().ensemble.method
    predictions = pd.read_csv(require_file(PREDICTIONS))
    validation, test = (read_split(predictions, split) for split in ("validation", "test"))

    combination, own_scores = make_combination(method, validation)
    combined = test.combined(combination)
    on_validation = validation.member_scores()
    best_member = max(on_validation, key=lambda name: on_validation[name]["accuracy"])
    scores = {
        **score(combined, test.labels),
        **own_scores,
        "method": method,
        "members": ", ".join(test.margins),  # DVC shows no lists
        "best_member": best_member,
        **compare(expit(test.margins[best_member]), combined, test.labels),
    }
    with atomic_write() as write_to:
        write_json(write_to(ENSEMBLE_SCORES), scores)
        rows = pd.concat(
            split.margins.index.to_frame(index=False).assign(split=name, probability_of_dog=split.combined(combination))
            for name, split in (("validation", validation), ("test", test))
        )
        rows.to_csv(write_to(ENSEMBLE_PREDICTIONS), index=False, float_format="%.9f")
        confusion(combined, test.labels).to_csv(write_to(ENSEMBLE_CONFUSION), index=False)

    print(scores_table({**test.member_scores(), f"ensemble ({method})": scores}))
    if len(on_validation) > 1:
        print(
            f"compared with {best_member}, its best member on validation: {scores['put_right']} mistakes corrected, "
            f"{scores['put_wrong']} added (McNemar's exact test: p = {scores['mcnemar_p']:.3g})"
        )


def read_split(predictions: pd.DataFrame, split: str) -> Split:
    rows = predictions[predictions["split"] == split].assign(margin=margin)
    margins = rows.pivot(index=["photo", "label"], columns="network", values="margin")[rows["network"].unique()]
    return Split(margins, label_numbers(margins.index.to_frame()))


def make_combination(method: str, validation: Split) -> tuple[Combination, dict]:
    """The combination, and its entries in ensemble.json: the weights if they are fitted, else the validation scores."""
    if method == "fitted_weights":  # fitted on validation, so scores on it would mean nothing
        combination = fit_weights(validation.margins.to_numpy(), validation.labels, list(validation.margins))
        return combination, {"weights": combination.weights, "intercept": combination.intercept}
    combination = Combination(method)
    scores = score(validation.combined(combination), validation.labels)
    return combination, {f"validation_{key}": scores[key] for key in ("accuracy", "log_loss")}


def compare(member: np.ndarray, combined: np.ndarray, labels: np.ndarray) -> dict:
    """Compare the ensemble with a member, given both sets of P(dog).

    `put_right` counts the member's mistakes that the ensemble corrects, `put_wrong` the mistakes that only the ensemble
    makes. `mcnemar_p` is the p-value of McNemar's exact test (a two-sided binomial test; 1.0 if nothing changed).
    """
    member_correct, combined_correct = (predicted_labels(p) == labels for p in (member, combined))
    put_right = int((combined_correct & ~member_correct).sum())
    put_wrong = int((member_correct & ~combined_correct).sum())
    changed = put_right + put_wrong
    p_value = binomtest(put_right, changed).pvalue if changed else 1.0
    return {"put_right": put_right, "put_wrong": put_wrong, "mcnemar_p": round(float(p_value), 6)}


if __name__ == "__main__":
    run_stage(main)
