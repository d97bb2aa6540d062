"""The other stages' results, as the report needs them."""

from dataclasses import dataclass

from pipeline.core.errors import UserError
from pipeline.core.files import read_json, require_file
from pipeline.core.paths import (
    BEST_MEMBER,
    COMBINATION,
    ENSEMBLE_CLASS_SCORES,
    ENSEMBLE_PREDICTIONS,
    ENSEMBLE_SCORES,
    HEAT_MAPS,
    METRICS,
    NETWORK_CLASS_SCORES,
    NETWORK_SCORES,
    PREPARED,
    REJECTION_TABLE,
    learning_curve,
    network_metrics,
)
from pipeline.core.read_table import read_table
from pipeline.core.split_table import read_split_table
from pipeline.scores.combining import FITTED, repeats_member
from pipeline.scores.curves import reliability_table, roc_table
from pipeline.scores.hardest import hardest
from pipeline.scores.predictions import (
    Predictions,
    classes_of,
    outputs_of,
    read_ensemble_predictions,
    read_logits,
    select_split,
)
from pipeline.scores.scoring import ENSEMBLE, predicted_labels, read_scores

import numpy as np
import pandas as pd
from safetensors import safe_open
from sklearn.metrics import confusion_matrix


@dataclass(frozen=True)
class Results:
    """The results of the other stages.

    Dicts are by network and, unless noted, start with the ensemble, unless it only repeats a single network. `main` is
    the first of them, which the page is about.
    """

    classes: list[str]
    networks: list[str]
    main: str  # the ensemble, or the only network
    combination: dict  # the content of combination.json
    comparison: dict  # with the best member: the content of best_member.json
    scores: dict[str, dict]  # on test
    validation: dict[str, dict]  # scores; without the ensemble if its weights were fitted on validation
    class_scores: dict[str, list[dict]]  # on test
    curves: dict[str, pd.DataFrame]  # learning curves, without the ensemble
    kept_epochs: dict[str, int | str]  # the epoch that `train` kept, or 0+3 (1:3) for a mean; without the ensemble
    split_table: pd.DataFrame
    photos: pd.DataFrame  # of test: photo, label
    labels: np.ndarray  # int [N]
    probabilities: dict[str, np.ndarray]  # [N, classes]
    counts: dict[str, np.ndarray]  # [classes, classes] of photos, by actual and predicted class
    roc: dict[str, pd.DataFrame]
    reliability: dict[str, pd.DataFrame]
    rejection: pd.DataFrame  # of test: similarity and whether it is rejected; empty if nothing is rejected
    heat_maps: dict[str, dict[int, np.ndarray]]  # of the photos shown, without the ensemble: see read_heat_maps


def read_results() -> Results:
    """Read the other stages' results. Raises UserError if some are missing or do not belong together."""
    split_table = read_split_table()
    predictions = select_split(read_logits(), "test")
    networks, labels, combination = list(predictions.logits), predictions.labels, read_json(COMBINATION)
    combined = read_combined(predictions, split_table)
    main = networks[0] if repeats_member(combination["method"], networks) else ENSEMBLE
    probabilities = {main: combined} | {name: p for name, p in predictions.probabilities.items() if name != main}
    scores, class_scores = (
        table[table["network"].isin(list(probabilities))]
        for table in (
            read_scores(ENSEMBLE_SCORES, NETWORK_SCORES),
            read_scores(ENSEMBLE_CLASS_SCORES, NETWORK_CLASS_SCORES),
        )
    )
    return Results(
        classes=predictions.classes,
        networks=networks,
        main=main,
        combination=combination,
        comparison=read_json(BEST_MEMBER),
        scores={name: row for name, [row] in by_network(scores[scores["split"] == "test"]).items()},
        validation={name: row for name, [row] in by_network(scores[scores["split"] == "validation"]).items()},
        class_scores=by_network(class_scores),
        curves={name: read_curve(name) for name in networks},
        kept_epochs={name: read_json(network_metrics(name))["kept_epoch"] for name in networks},
        split_table=split_table,
        photos=predictions.photos,
        labels=labels,
        probabilities=probabilities,
        counts={
            name: confusion_matrix(labels, predicted_labels(values), labels=range(len(predictions.classes)))
            for name, values in probabilities.items()
        },
        roc={name: roc_table(values, labels) for name, values in probabilities.items()},
        reliability={name: reliability_table(values, labels) for name, values in probabilities.items()},
        rejection=read_rejection(predictions.photos["photo"]),
        heat_maps=read_heat_maps(hardest(combined, labels)),
    )


def by_network(table: pd.DataFrame) -> dict[str, list[dict]]:
    """The rows of each network, as dicts."""
    return {str(name): rows.to_dict("records") for name, rows in table.groupby("network", sort=False)}


def read_curve(network: str) -> pd.DataFrame:
    """The learning curve of a network. Raises UserError if it is missing, or its training has not finished."""
    path = require_file(learning_curve(network))
    curve = pd.read_csv(path) if path.stat().st_size else pd.DataFrame()
    if "kept" not in curve:
        raise UserError(f"{path}: the training of {network} has not finished; run `dvc repro` to finish it")
    return curve


def read_combined(predictions: Predictions, split_table: pd.DataFrame) -> np.ndarray:
    """The ensemble's probabilities [N, classes] of the test photos.

    Raises UserError unless these and `predictions` are for the photos of test.safetensors, in the order of its rows.
    """
    combined = read_ensemble_predictions()
    combined = combined[combined["split"] == "test"]
    expected = split_table.loc[split_table["split"] == "test", "photo"].tolist()
    same_photos = expected == predictions.photos["photo"].tolist() == combined["photo"].tolist()
    if not same_photos or classes_of(combined) != predictions.classes:
        raise UserError(
            f"the predictions in {METRICS} are not for the test photos in {PREPARED}; run `dvc repro` to fix this"
        )
    return outputs_of(combined)


def read_rejection(photos: pd.Series) -> pd.DataFrame:
    """The test photos' similarity to those in train, and whether they are rejected; empty if nothing is rejected."""
    table = read_table(REJECTION_TABLE, ["split", "photo", "similarity", "rejected"])
    table = table[table["split"] == "test"].reset_index(drop=True)
    if len(table) and table["photo"].tolist() != photos.tolist():
        raise UserError(f"{REJECTION_TABLE} is not for the test photos in {PREPARED}; run `dvc repro` to fix this")
    return table


def read_heat_maps(shown: np.ndarray) -> dict[str, dict[int, np.ndarray]]:
    """By network, if it has any, and by row of test: uint8 [height, width].

    Raises UserError unless the photos in the rows `shown` are among them. With fitted_weights, some may be missing.
    """
    with safe_open(require_file(HEAT_MAPS), framework="numpy") as file:
        maps = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    rows = maps.pop("rows").tolist()
    if not set(shown.tolist()) <= set(rows) and read_json(COMBINATION)["method"] != FITTED:
        raise UserError(
            f"{HEAT_MAPS} is not for the hardest photos in {ENSEMBLE_PREDICTIONS}; run `dvc repro` to fix this"
        )
    return {name: dict(zip(rows, values, strict=True)) for name, values in maps.items()}
