"""Read what a run stored of cross-validation, so that its predictions can be compared like those of a split."""

import io
from collections.abc import Callable
from pathlib import Path

from pipeline.core.errors import UserError, first_line
from pipeline.core.fold_paths import FOLDS_LOCK, FOLDS_PREDICTIONS, fold_predictions
from pipeline.core.parse_yaml import parse_yaml
from pipeline.core.paths import PARAMS, SPLIT_TABLE
from pipeline.core.results import LOCK
from pipeline.core.split_table import read_split_table
from pipeline.folds.joining import read_joined
from pipeline.folds.stages import read_arguments
from pipeline.runs.reading import (
    Answers,
    Run,
    open_run,
    params_of,
    read_code,
    require_consistent,
    written_by,
)
from pipeline.scores.predictions import log_losses
from pipeline.scores.scoring import ENSEMBLE, predicted_labels

import yaml

FOLDED = "train and validation"  # what messages call these photos, as they call others by their split
COMMAND = "python tools/folds.py"


def read_folds(name: str) -> Run:
    """The held-out predictions of a run: one of each photo of train and validation, copies left out.

    Raises UserError if there is no such run, or if some of it is missing or out of date.
    """
    commit, read = open_run(name)
    stages = _read_lock(name, read)
    params = params_of(name, stages)
    folds, seed = read_arguments(stages["join"]["cmd"])
    params |= {"folds": folds, "the folds' seed": seed}
    require_consistent(name, stages, read, (SPLIT_TABLE, FOLDS_PREDICTIONS), COMMAND)
    joined = read_joined(io.BytesIO(read(FOLDS_PREDICTIONS)), f"{name}: {FOLDS_PREDICTIONS}").scored()
    hash_of = read_split_table(io.BytesIO(read(SPLIT_TABLE)), f"{name}: {SPLIT_TABLE}").set_index("photo")["sha256"]
    photos = joined.photos.assign(sha256=joined.photos["photo"].map(hash_of))
    order = photos.sort_values(["sha256", "photo"]).index
    labels, answers = joined.labels[order], {}
    for network, values in joined.probabilities.items():
        probabilities = values[order]
        correct = predicted_labels(probabilities) == labels
        answers[network] = Answers(joined.classes, probabilities, correct, log_losses(probabilities, labels))
    hashes = written_by(stages)
    models = {
        network: " ".join(hashes[fold_predictions(network, fold).as_posix()] for fold in range(1, folds + 1))
        for network in answers
        if network != ENSEMBLE
    }
    photos = photos.loc[order, ["photo", "label", "sha256"]].reset_index(drop=True)
    return Run(name, commit, params, read_code(stages, read), photos, answers, models, kept_epochs={})


def _read_lock(name: str, read: Callable[[Path], bytes]) -> dict[str, dict]:
    """What folds/dvc.lock says of its stages, and dvc.lock of `prepare`. Raises UserError if they have not run."""
    try:
        text = read(FOLDS_LOCK)
    except UserError:
        raise UserError(f"{name} has no {FOLDS_LOCK}, so no cross-validation; run `{COMMAND}` there") from None
    try:
        prepare = parse_yaml(read(LOCK))["stages"]["prepare"]
        stages = parse_yaml(text)["stages"]
        networks = stages["join"]["params"][PARAMS.name]["networks"]
        folds, _ = read_arguments(stages["join"]["cmd"])
        trained = [f"train@{network}-{fold}" for network in networks for fold in range(1, folds + 1)]
        used = {stage: stages[stage] for stage in trained}
        return {"prepare": prepare, **used, "join": stages["join"]}
    except (KeyError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"{name}: {FOLDS_LOCK} is not complete ({first_line(error)}); run `{COMMAND}` there") from None
