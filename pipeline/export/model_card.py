"""The model card, as Markdown."""

from pipeline.core.all_params import Params, describe_own_params
from pipeline.core.class_sizes import are_unequal, describe_few
from pipeline.core.files import read_json
from pipeline.core.params import as_written
from pipeline.core.paths import (
    ENSEMBLE_CLASS_SCORES,
    ENSEMBLE_SCORES,
    NETWORK_CLASS_SCORES,
    NETWORK_SCORES,
    PREPARE_SUMMARY,
)
from pipeline.core.split_table import MAX_NAMED, describe_classes, read_split_table
from pipeline.core.tool_paths import graph_file
from pipeline.export.graphs import IR_VERSION, OPSET
from pipeline.export.int8 import Cost
from pipeline.inference.ensemble import Ensemble
from pipeline.pages.rendering import render
from pipeline.scores.scoring import read_scores

import numpy as np
import pandas as pd


def model_card(
    params: Params,
    ensemble: Ensemble,
    differences: pd.DataFrame,
    checked: int,
    example: dict[str, np.ndarray],
    costs: dict[str, Cost],
) -> str:
    """The model card as Markdown: input and output of the graphs, training, scores and limitations.

    `differences` are those of `compare`, on `checked` test photos; `example` has the probabilities [classes] of
    example.png from each graph, and `costs` what int8 costs it, if it was written.
    """
    graphs = list(example)
    scores = {name: row for name, row in scores_on_test().items() if name in graphs}
    photos = {name: row["photos"] for name, row in scores[graphs[-1]]["classes"].items()}
    settings = {"lr": params.lr, **params.train.model_dump(exclude={"launcher"})}
    return render(
        "model_card.md.jinja",
        classes=ensemble.classes,
        most_named=MAX_NAMED,
        main=graphs[-1],
        files={name: graph_file(name).name for name in graphs},
        networks=list(ensemble.networks),
        method=ensemble.combination.method,
        test_time_flip=params.evaluate.test_time_flip,
        size=ensemble.image_size,
        rejects=ensemble.can_reject,
        differences=differences,
        checked=checked,
        example={name: dict(zip(ensemble.classes, row.tolist(), strict=True)) for name, row in example.items()},
        costs=costs,
        opset=OPSET,
        ir_version=IR_VERSION,
        source=params.prepare.source,
        prepared=read_json(PREPARE_SUMMARY),
        photos_by_class=describe_classes(read_split_table()),
        weights=", ".join(f"{name}: {network.weights}" for name, network in params.networks.items()),
        own_params=describe_own_params(params),
        settings=", ".join(f"{key}: {as_written(value)}" for key, value in settings.items()),
        kept_epochs=ensemble.kept_epochs,
        scores=scores,
        unequal=are_unequal(photos.values()),
        few_photos=describe_few(photos),
    )


def scores_on_test() -> dict[str, dict]:
    """The test scores of each network and of the ensemble, including those of each class (key `classes`)."""
    scores = read_scores(NETWORK_SCORES, ENSEMBLE_SCORES)
    class_scores = read_scores(NETWORK_CLASS_SCORES, ENSEMBLE_CLASS_SCORES)
    by_class = {str(name): rows.set_index("class").to_dict("index") for name, rows in class_scores.groupby("network")}
    test = scores[scores["split"] == "test"].set_index("network")
    return {str(name): {**row, "classes": by_class[str(name)]} for name, row in test.to_dict("index").items()}
