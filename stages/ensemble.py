"""Combine the networks' predictions, score the ensemble, and compare it with its best member.

Reads networks.csv in metrics/predictions/ and metrics/scores/, and runs no network; writes models/combination.json (how
the members are combined), metrics/best_member.json (the comparison), metrics/ensemble.json (the main scores), and the
tables ensemble.csv in metrics/scores/, metrics/class_scores/ and metrics/predictions/ (the probability of each class,
one row per photo of validation and test).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

from pipeline.core.command_line import read_arguments
from pipeline.core.files import atomic_write, require_files, write_json
from pipeline.core.params import Section
from pipeline.core.paths import (
    BEST_MEMBER,
    COMBINATION,
    ENSEMBLE_CLASS_SCORES,
    ENSEMBLE_METRICS,
    ENSEMBLE_PREDICTIONS,
    ENSEMBLE_SCORES,
    NETWORK_PREDICTIONS,
    NETWORK_SCORES,
)
from pipeline.core.process import run_stage
from pipeline.core.read_params import read_params
from pipeline.core.sections.ensemble import Ensemble


class Params(Section):
    """What this stage reads of params.yaml."""

    ensemble: Ensemble


def read_inputs() -> Params:
    """The params. Raises UserError if they are wrong, or if an input is missing."""
    read_arguments(__doc__)
    params = read_params(Params)
    require_files(NETWORK_PREDICTIONS, NETWORK_SCORES)
    return params


def main() -> None:
    method = read_inputs().ensemble.method

    # Slow imports, so not before: mistakes in the inputs should be reported at once.
    from pipeline.core.class_sizes import are_unequal
    from pipeline.scores.combining import FITTED, repeats_member
    from pipeline.scores.ensembling import (
        compare_answers,
        describe_combination,
        find_best_member,
        make_combination,
        probabilities_table,
        uncalibrated,
    )
    from pipeline.scores.predictions import PROBABILITY_DIGITS, read_logits, select_split
    from pipeline.scores.scoring import (
        ENSEMBLE,
        headline,
        read_scores,
        score,
        score_classes,
        scores_table,
        write_class_scores,
        write_scores,
    )

    import pandas as pd

    logits = read_logits()
    splits = {split: select_split(logits, split) for split in ("validation", "test")}
    validation, test = splits.values()
    combination = make_combination(method, validation)
    combined = {split: combination(list(predictions.logits.values())) for split, predictions in splits.items()}
    # Scores on the photos that the weights were fitted to would mean nothing.
    scored = ["test"] if method == FITTED else list(splits)
    before = {split: uncalibrated(combination, of) for split, of in splits.items()}
    scores = {split: score(combined[split], splits[split].labels, before[split]) for split in scored}
    class_scores = score_classes(combined["test"], test.labels, test.classes)
    members = read_scores(NETWORK_SCORES)
    best_member = find_best_member(members)
    comparison = compare_answers(test.probabilities[best_member], combined["test"], test.labels)

    with atomic_write() as write_to:
        write_json(write_to(ENSEMBLE_METRICS), headline(scores["test"], scores.get("validation")))
        write_scores(write_to(ENSEMBLE_SCORES), {ENSEMBLE: scores})
        write_class_scores(write_to(ENSEMBLE_CLASS_SCORES), {ENSEMBLE: class_scores})
        write_json(write_to(COMBINATION), describe_combination(combination, list(test.logits), test.classes))
        write_json(write_to(BEST_MEMBER), {"best_member": best_member, **comparison})
        tables = [probabilities_table(split, splits[split], combined[split]) for split in splits]
        pd.concat(tables).to_csv(write_to(ENSEMBLE_PREDICTIONS), index=False, float_format=f"%.{PROBABILITY_DIGITS}f")

    member_scores = {row["network"]: row for row in members[members["split"] == "test"].to_dict("records")}
    unequal = are_unequal(test.photos_by_class.values())
    if repeats_member(method, list(member_scores)):
        print(scores_table(member_scores, unequal))
        print(f"{best_member} is the only network, so the ensemble gives the same answers")
        return
    print(scores_table({**member_scores, f"{ENSEMBLE} ({method})": scores["test"]}, unequal))
    member = f"{best_member}, its best member on validation" if len(member_scores) > 1 else f"{best_member} alone"
    print(
        f"compared with {member}: {comparison['corrected']} mistakes corrected, {comparison['broken']} added "
        f"(McNemar's exact test: p = {comparison['mcnemar_p']:.3g})"
    )


if __name__ == "__main__":
    run_stage(main)
