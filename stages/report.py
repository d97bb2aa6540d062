"""Show all results on one HTML page that opens offline, and write its plots as PNG and tables for DVC's plots.

Reads metrics/, models/combination.json, data/prepared/, params.yaml and dvc.yaml, and runs no network; writes
metrics/report.html, metrics/plots/ (PNG), metrics/confusion/, metrics/roc/ and metrics/reliability/ (one table per
network, and one for the ensemble, unless it only repeats a single network).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.core.all_params import Params, without_folders
from pipeline.core.command_line import read_arguments
from pipeline.core.errors import UserError
from pipeline.core.files import atomic_write, read_json, require_file, require_files
from pipeline.core.params import flatten
from pipeline.core.paths import (
    COMBINATION,
    CONTACT_SHEET,
    ENSEMBLE_CLASS_SCORES,
    ENSEMBLE_PREDICTIONS,
    ENSEMBLE_SCORES,
    HEAT_MAPS,
    METRICS,
    NETWORK_CLASS_SCORES,
    NETWORK_PREDICTIONS,
    NETWORK_SCORES,
    PREPARE_SUMMARY,
    PREPARED,
    REJECTION_TABLE,
    REPORT,
    SPLIT_TABLE,
    confusion_file,
    learning_curve,
    packed_split,
    plot_file,
    reliability_file,
    roc_file,
)
from pipeline.core.process import check_first, run_stage
from pipeline.core.read_params import read_params

INPUTS = (
    packed_split("test"),
    SPLIT_TABLE,
    CONTACT_SHEET,
    PREPARE_SUMMARY,
    COMBINATION,
    NETWORK_PREDICTIONS,
    ENSEMBLE_PREDICTIONS,
    NETWORK_SCORES,
    ENSEMBLE_SCORES,
    NETWORK_CLASS_SCORES,
    ENSEMBLE_CLASS_SCORES,
    HEAT_MAPS,
    REJECTION_TABLE,
)


def read_inputs() -> Params:
    """The params. Raises UserError if they are wrong, or if another stage's result is missing."""
    read_arguments(__doc__)
    params = read_params(Params)
    require_files(*INPUTS)
    return params


if __name__ == "__main__":
    check_first(read_inputs)

from pipeline.core.class_sizes import are_unequal, describe_few
from pipeline.core.packed import read_packed
from pipeline.core.read_table import read_table
from pipeline.core.split_table import describe_classes, read_split_table
from pipeline.pages import plots
from pipeline.pages.graph import stage_levels
from pipeline.pages.rendering import heat_uri, jpeg_uri, render, thumbnail
from pipeline.scores.combining import FITTED, repeats_member
from pipeline.scores.curves import calibration, confidence_edges, count_correct, reliability_table, roc_table
from pipeline.scores.hardest import WORST, hardest, least_confident, worst_mistakes
from pipeline.scores.predictions import (
    Predictions,
    classes_of,
    outputs_of,
    read_ensemble_predictions,
    read_logits,
    select_split,
)
from pipeline.scores.scoring import ENSEMBLE, accuracy_interval, confusion_table, predicted_labels, read_scores

import numpy as np
import pandas as pd
from markupsafe import Markup
from PIL import Image
from safetensors import safe_open
from sklearn.metrics import confusion_matrix

NAMED = 20  # excluded photos listed for each reason
FEW_CLASSES = 10  # with more, the page has shorter tables, and lists confusions instead of showing matrices
CONFIDENCES = (0.5, 0.9, 0.99, 0.999)  # minimum ones, for which the page counts mistakes

PlotGroups = Mapping[str, Mapping[str, plots.Plot]]  # by kind, then by name


def main() -> None:
    params = read_inputs()
    results = read_results()
    plot_groups = make_plots(results)
    page = render_page(params, results, plot_groups)
    with atomic_write() as write_to:
        write_to(REPORT).write_text(page, encoding="utf-8")
        for kind, group in plot_groups.items():
            scale = plots.confusion_scale(len(results.classes)) if kind == "confusion" else 1
            plots.write_png(write_to(plot_file(kind)), list(group.values()), scale)
        for name, probabilities in results.probabilities.items():
            answers = confusion_table(probabilities, results.labels, results.classes)
            answers.to_csv(write_to(confusion_file(name)), index=False)
            results.roc[name].to_csv(write_to(roc_file(name)), index=False)
            results.reliability[name].to_csv(write_to(reliability_file(name)), index=False)
    for folder in (confusion_file("").parent, roc_file("").parent, reliability_file("").parent):
        for path in folder.glob("*.csv"):
            if path.stem not in results.scores:
                path.unlink()  # left over from a removed network or ensemble
    print(f"{REPORT}: {len(page) / 1e6:.1f} MB; open it in a browser")


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
    scores: dict[str, dict]  # on test
    validation: dict[str, dict]  # scores; without the ensemble if its weights were fitted on validation
    class_scores: dict[str, list[dict]]  # on test
    curves: dict[str, pd.DataFrame]  # learning curves, without the ensemble
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
        scores={name: row for name, [row] in by_network(scores[scores["split"] == "test"]).items()},
        validation={name: row for name, [row] in by_network(scores[scores["split"] == "validation"]).items()},
        class_scores=by_network(class_scores),
        curves={name: pd.read_csv(require_file(learning_curve(name))) for name in networks},
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


def make_plots(results: Results) -> PlotGroups:
    """The report's plots."""
    scores, networks, classes, counts = results.scores, results.networks, results.classes, results.counts
    reaches = {"whole": 1, "corner": corner(counts)}
    edges = confidence_edges(len(classes))
    return {
        "accuracy": {"all": plots.accuracies(scores, networks)},
        "learning_curves": {
            **{name: plots.losses(name, curve, networks) for name, curve in results.curves.items()},
            "validation accuracy": plots.validation_accuracies(results.curves),
        },
        "confusion": {name: plots.confusion_matrix(name, counts[name], classes) for name in scores},
        "roc": {
            name: plots.roc(results.roc, counts, classes, networks, reach)
            for name, reach in reaches.items()
            if name == "whole" or reach < 1
        },
        "reliability": {name: plots.reliability(name, results.reliability[name], edges, networks) for name in scores},
    }


def corner(counts: dict[str, np.ndarray]) -> float:
    """The part of the ROC plot worth showing larger: with two classes, a little more than every curve's mark needs."""
    recalls = [matrix.diagonal() / matrix.sum(axis=1) for matrix in counts.values()]
    missed = [1 - (recall.min() if len(recall) == 2 else recall.mean()) for recall in recalls]
    return min(1, 1.5 * max(missed) + 0.02)


def render_page(params: Params, results: Results, plot_groups: PlotGroups) -> str:
    """The report as HTML."""
    values = dict(flatten(without_folders(params).model_dump()))
    values = {key: ", ".join(value) if isinstance(value, tuple) else value for key, value in values.items()}
    combined = results.probabilities[results.main]
    photos_by_class = {row["class"]: row["photos"] for row in results.class_scores[results.main]}
    least = confidence_edges(len(results.classes))[0]
    return render(
        "report.html.jinja",
        main=results.main,
        has_ensemble=results.main == ENSEMBLE,
        scores=results.scores,
        validation=results.validation,
        class_scores=results.class_scores,
        unequal=are_unequal(photos_by_class.values()),
        few_photos=describe_few(photos_by_class),
        combination=results.combination,
        networks=results.networks,
        classes=results.classes,
        agreement=count_agreement(results),
        few_classes=FEW_CLASSES,
        counts=results.counts,
        confusions=list_confusions(results.counts[results.main], results.classes),
        mistakes=show(worst_mistakes(combined, results.labels), results),
        least_confident=show(least_confident(combined), results),
        heat_maps=list(results.heat_maps),
        rejected=count_rejected(results.rejection) if len(results.rejection) else None,
        rejected_photos=show(least_similar(results.rejection), results, explain=False),
        reliability={name: table.to_dict("records") for name, table in results.reliability.items()},
        calibration=calibration,
        by_confidence=[count_correct(combined, results.labels, edge, 1) for edge in sorted({least, *CONFIDENCES})],
        curves={name: curve.to_dict("records") for name, curve in results.curves.items()},
        kept_epochs={name: kept_epoch(curve) for name, curve in results.curves.items()},
        prepared=read_json(PREPARE_SUMMARY),
        photos_by_class=describe_classes(results.split_table),
        excluded=name_excluded(results.split_table),
        contact_sheet=jpeg_uri(Image.open(require_file(CONTACT_SHEET))),
        params=values,
        steps=stage_levels(values),
        plots={
            kind: {name: Markup(plots.svg(plot, f"{kind} {name}")) for name, plot in group.items()}
            for kind, group in plot_groups.items()
            if kind != "confusion"  # the page has tables instead
        },
    )


def count_agreement(results: Results) -> dict:
    """Count the photos that all networks misclassify, those they disagree on, and how many of the latter the ensemble
    gets correct.
    """
    predicted = np.stack([predicted_labels(results.probabilities[name]) for name in results.networks])
    differ = (predicted != predicted[0]).any(axis=0)
    combined = predicted_labels(results.probabilities[results.main])
    return {
        "all_wrong": int((predicted != results.labels).all(axis=0).sum()),
        "differ": int(differ.sum()),
        "differ_correct": int((combined == results.labels)[differ].sum()),
    }


def list_confusions(counts: np.ndarray, classes: list[str]) -> list[dict]:
    """The confusions, the most frequent first: how many of a class's photos were classified as another class."""
    mistakes = counts - np.diag(counts.diagonal())
    order = np.argsort(-mistakes, axis=None, kind="stable")[: np.count_nonzero(mistakes)]
    return [
        {
            "actual": classes[actual],
            "predicted": classes[predicted],
            "photos": int(mistakes[actual, predicted]),
            "total": int(counts[actual].sum()),
        }
        for actual, predicted in zip(*np.unravel_index(order, counts.shape), strict=True)
    ]


def kept_epoch(curve: pd.DataFrame) -> int:
    """The epoch whose weights `train` kept."""
    return int(curve.loc[curve["kept"], "epoch"].item())


def show(rows: np.ndarray, results: Results, explain: bool = True) -> list[dict]:
    """Test photos for the page's gallery, each with its image, where the networks looked, and all probabilities."""
    heat_maps = results.heat_maps if explain else {}
    pixels = read_packed(packed_split("test")).pixels
    return [
        {
            **results.photos.iloc[row],
            "image": thumbnail(pixels[row]),
            "heat_maps": {name: heat_uri(pixels[row], maps[row]) for name, maps in heat_maps.items() if row in maps},
            "probabilities": {
                name: dict(zip(results.classes, values[row].tolist(), strict=True))
                for name, values in results.probabilities.items()
            },
        }
        for row in rows.tolist()
    ]


def read_rejection(photos: pd.Series) -> pd.DataFrame:
    """The test photos' similarity to those in train, and whether they are rejected; empty if nothing is rejected."""
    table = read_table(REJECTION_TABLE, ["split", "photo", "similarity", "rejected"])
    table = table[table["split"] == "test"].reset_index(drop=True)
    if len(table) and table["photo"].tolist() != photos.tolist():
        raise UserError(f"{REJECTION_TABLE} is not for the test photos in {PREPARED}; run `dvc repro` to fix this")
    return table


def count_rejected(table: pd.DataFrame) -> dict:
    """How many test photos are rejected, and the 95 % interval of their share."""
    rejected = int(table["rejected"].sum())
    interval = accuracy_interval(rejected, len(table))
    return {"photos": rejected, "low": interval["accuracy_low"], "high": interval["accuracy_high"]}


def least_similar(table: pd.DataFrame) -> np.ndarray:
    """The rows of the rejected photos that are least similar to those in train, the least similar first."""
    return table[table["rejected"]].sort_values("similarity", kind="stable").index[:WORST].to_numpy()


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


def name_excluded(split_table: pd.DataFrame) -> dict[str, list[str]]:
    """The first excluded photos for each reason, except those that were not needed because the splits were full."""
    excluded = split_table[~split_table["excluded"].isin(["", "not needed"])]
    return {str(reason): rows["photo"].head(NAMED).tolist() for reason, rows in excluded.groupby("excluded")}


if __name__ == "__main__":
    run_stage(main)
