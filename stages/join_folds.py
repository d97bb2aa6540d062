"""Join the predictions of all folds, combine the networks, and score everything.

Reads metrics/folds/models/ and data/prepared/split.csv; writes metrics/folds/predictions.csv (one row per photo of
train and validation, with the probabilities by each network and the ensemble), scores.csv (of all folds, and of each),
folds.png and networks/ (the main scores). folds/dvc.yaml, which tools/folds.py writes, runs it.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

import argparse

from pipeline.core.command_line import ArgumentParser
from pipeline.core.files import atomic_write, read_json, require_files, write_json
from pipeline.core.fold_paths import (
    FOLDS_METRICS,
    FOLDS_PLOT,
    FOLDS_PREDICTIONS,
    FOLDS_SCORES,
    fold_predictions,
    fold_scores,
    folds_metrics,
)
from pipeline.core.params import Networks, Section
from pipeline.core.paths import SPLIT_TABLE
from pipeline.core.process import run_stage
from pipeline.core.read_params import read_params
from pipeline.core.sections.ensemble import Ensemble


class Params(Section):
    """What this stage reads of params.yaml."""

    networks: Networks
    ensemble: Ensemble


def read_inputs() -> tuple[argparse.Namespace, Params]:
    """The arguments and the params. Raises UserError if they are wrong, or if an input is missing."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--folds", type=int, required=True, help="how many there are")
    parser.add_argument("--seed", type=int, required=True, help="the one they were made with")
    arguments, params = parser.parse_args(), read_params(Params)
    require_files(
        SPLIT_TABLE,
        *(
            path(network, fold)
            for network in params.networks
            for fold in range(1, arguments.folds + 1)
            for path in (fold_predictions, fold_scores)
        ),
    )
    return arguments, params


def main() -> None:
    arguments, params = read_inputs()

    # Slow imports, so not before: mistakes in the inputs should be reported at once.
    from pipeline.core.split_table import read_split_table
    from pipeline.folds.assigning import assign_folds
    from pipeline.folds.describing import write_plots
    from pipeline.folds.joining import join
    from pipeline.folds.scoring import headlines, scores_by_fold
    from pipeline.scores.predictions import PROBABILITY_DIGITS

    photos = assign_folds(read_split_table(), arguments.folds, arguments.seed)
    photos = photos.sort_values("photo", ignore_index=True)
    held_out, chose = join(photos, list(params.networks), params.ensemble.method)
    kept = {
        (network, str(fold)): read_json(fold_scores(network, fold))["kept_epoch"]
        for network in params.networks
        for fold in range(1, arguments.folds + 1)
    }
    scores = scores_by_fold(held_out, chose, kept)
    with atomic_write() as write_to:
        table = held_out.table()
        table.to_csv(write_to(FOLDS_PREDICTIONS), index=False, float_format=f"%.{PROBABILITY_DIGITS}f")
        scores.to_csv(write_to(FOLDS_SCORES), index=False)
        write_plots(write_to(FOLDS_PLOT), held_out, scores)
        for name, values in headlines(scores).items():
            write_json(write_to(folds_metrics(name)), values)
    for path in FOLDS_METRICS.glob("*.json"):
        if path not in map(folds_metrics, held_out.probabilities):
            path.unlink()  # left over from a removed network


if __name__ == "__main__":
    run_stage(main)
