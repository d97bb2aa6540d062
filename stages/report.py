"""Show all results on one HTML page that opens offline, and write its plots as PNG and tables for DVC's plots.

Reads metrics/, data/prepared/, params.yaml and dvc.yaml, and runs no network; writes metrics/report.html,
metrics/plots/ (PNG), metrics/roc/ and metrics/reliability/ (one table per network, and one for the ensemble).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pipeline.core import CLASSES
from pipeline.core.command_line import read_arguments
from pipeline.core.errors import UserError
from pipeline.core.files import atomic_write, read_json, require_file
from pipeline.core.params import read_params, without_folders
from pipeline.core.paths import (
    CONTACT_SHEET,
    ENSEMBLE_PREDICTIONS,
    ENSEMBLE_SCORES,
    METRICS,
    NETWORK_SCORES,
    PREDICTIONS,
    PREPARE_SUMMARY,
    PREPARED,
    REPORT,
    learning_curve,
    packed_split,
    plot_file,
    reliability_file,
    roc_file,
)
from pipeline.core.process import run_stage
from pipeline.core.split_table import describe_classes, read_split_table
from pipeline.pages import plots
from pipeline.pages.graph import read_stages
from pipeline.pages.rendering import jpeg_uri, render, thumbnail
from pipeline.scores.curves import SURENESS, count_correct, reliability_table, roc_table, sureness
from pipeline.scores.scoring import label_numbers, predicted_labels, probability_of_dog

import numpy as np
import pandas as pd
from markupsafe import Markup
from PIL import Image
from safetensors import safe_open
from sklearn.metrics import confusion_matrix

ENSEMBLE = "ensemble"
WORST, LEAST_SURE = 24, 12  # photos shown
NAMED = 20  # excluded photos listed for each reason
CONFIDENCES = (0.5, 0.9, 0.99, 0.999)  # minimum ones, for which the page counts mistakes

PlotGroups = Mapping[str, Mapping[str, plots.Plot]]  # by kind, then by name


def main() -> None:
    read_arguments(__doc__)
    results = read_results()
    plot_groups = make_plots(results)
    page = render_page(results, plot_groups)
    with atomic_write() as write_to:
        write_to(REPORT).write_text(page, encoding="utf-8")
        for kind, group in plot_groups.items():
            plots.write_png(write_to(plot_file(kind)), list(group.values()))
        for name in results.scores:
            results.roc[name].to_csv(write_to(roc_file(name)), index=False)
            results.reliability[name].to_csv(write_to(reliability_file(name)), index=False)
    print(f"{REPORT}: {len(page) / 1e6:.1f} MB; open it in a browser")


@dataclass(frozen=True)
class Results:
    """The results of the other stages. Dicts are by network and, unless noted, start with the ensemble."""

    networks: list[str]
    scores: dict[str, dict]
    curves: dict[str, pd.DataFrame]  # learning curves, without the ensemble
    split_table: pd.DataFrame
    photos: pd.DataFrame  # of test, with a column of probabilities of dog for each network and the ensemble
    labels: np.ndarray  # int [N], 0 cat, 1 dog
    counts: dict[str, np.ndarray]  # [2, 2] of photos, by actual and predicted class
    roc: dict[str, pd.DataFrame]
    reliability: dict[str, pd.DataFrame]


def read_results() -> Results:
    """Read the other stages' results. Raises UserError if some are missing or do not belong together."""
    scores = {ENSEMBLE: read_json(ENSEMBLE_SCORES)} | read_json(NETWORK_SCORES)
    networks = [name for name in scores if name != ENSEMBLE]
    split_table = read_split_table()
    photos = read_test_photos(split_table, networks)
    labels = label_numbers(photos)
    return Results(
        networks=networks,
        scores=scores,
        curves={name: pd.read_csv(require_file(learning_curve(name))) for name in networks},
        split_table=split_table,
        photos=photos,
        labels=labels,
        counts={name: confusion_matrix(labels, predicted_labels(photos[name]), labels=[0, 1]) for name in scores},
        roc={name: roc_table(photos[name], labels) for name in scores},
        reliability={name: reliability_table(photos[name], labels) for name in scores},
    )


def read_test_photos(split_table: pd.DataFrame, networks: list[str]) -> pd.DataFrame:
    """One row per test photo, in the row order of test.safetensors: photo, label, and a column with the probability of
    dog from each network and the ensemble. Raises UserError if some are missing.
    """
    photos = split_table.loc[split_table["split"] == "test", ["photo", "label"]].reset_index(drop=True)
    predictions = pd.read_csv(require_file(PREDICTIONS))
    predictions = predictions[predictions["split"] == "test"].assign(probability=probability_of_dog)
    combined = pd.read_csv(require_file(ENSEMBLE_PREDICTIONS)).set_index("photo")["probability_of_dog"]
    photos = photos.join(predictions.pivot(index="photo", columns="network", values="probability"), on="photo")
    photos = photos.join(combined.rename(ENSEMBLE), on="photo")
    if photos[[*networks, ENSEMBLE]].isna().any(axis=None):
        raise UserError(
            f"the predictions in {METRICS} are not for the test photos in {PREPARED}; run `dvc repro` to fix this"
        )
    return photos


def make_plots(results: Results) -> PlotGroups:
    """The report's plots."""
    scores, networks = results.scores, results.networks
    # Wide enough for every curve's mark: the classes are equal in size, so the rate of one kind of mistake is at most
    # twice the rate of all mistakes.
    corner = min(1, 3 * max(1 - values["accuracy"] for values in scores.values()) + 0.02)
    return {
        "accuracy": {"all": plots.accuracies(scores, networks)},
        "learning_curves": {
            **{name: plots.losses(name, curve, networks) for name, curve in results.curves.items()},
            "validation accuracy": plots.validation_accuracies(results.curves),
        },
        "confusion": {name: plots.confusion_matrix(name, results.counts[name]) for name in scores},
        "roc": {
            "whole": plots.roc(results.roc, results.counts, networks),
            "corner": plots.roc(results.roc, results.counts, networks, corner),
        },
        "reliability": {
            name: plots.reliability(name, results.reliability[name], SURENESS, networks) for name in scores
        },
    }


def render_page(results: Results, plot_groups: PlotGroups) -> str:
    """The report as HTML."""
    params = dict(flatten(without_folders(read_params()).model_dump()))
    names, ensemble = list(results.scores), results.photos[ENSEMBLE]
    least_sure = results.photos.iloc[sureness(ensemble).argsort(kind="stable")[:LEAST_SURE]]
    return render(
        "report.html.jinja",
        scores=results.scores,
        networks=results.networks,
        classes=CLASSES,
        agreement=count_agreement(results),
        counts=results.counts,
        mistakes=show(worst_mistakes(results.photos), names),
        least_sure=show(least_sure, names),
        reliability={name: table.to_dict("records") for name, table in results.reliability.items()},
        by_confidence=[count_correct(ensemble, results.labels, least, 1) for least in CONFIDENCES],
        curves={name: curve.to_dict("records") for name, curve in results.curves.items()},
        kept_epochs={name: kept_epoch(curve) for name, curve in results.curves.items()},
        prepared=read_json(PREPARE_SUMMARY),
        photos_by_class=describe_classes(results.split_table),
        excluded=name_excluded(results.split_table),
        contact_sheet=jpeg_uri(Image.open(require_file(CONTACT_SHEET))),
        params=params,
        steps=read_stages(params),
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
    columns = results.photos[[*results.networks, ENSEMBLE]]
    correct = columns.apply(lambda column: predicted_labels(column) == results.labels)
    differ = correct[results.networks].any(axis=1) & ~correct[results.networks].all(axis=1)
    return {
        "all_wrong": int((~correct[results.networks]).all(axis=1).sum()),
        "differ": int(differ.sum()),
        "differ_right": int(correct.loc[differ, ENSEMBLE].sum()),
    }


def kept_epoch(curve: pd.DataFrame) -> int:
    """The epoch whose weights `train` kept: the first one with the highest validation accuracy."""
    return int(curve.loc[curve["validation_accuracy"].idxmax(), "epoch"])


def worst_mistakes(photos: pd.DataFrame) -> pd.DataFrame:
    """The ensemble's most confident mistakes, the most confident first."""
    mistakes = photos[predicted_labels(photos[ENSEMBLE]) != label_numbers(photos)]
    return mistakes.iloc[(-sureness(mistakes[ENSEMBLE])).argsort(kind="stable")[:WORST]]


def show(photos: pd.DataFrame, names: list[str]) -> list[dict]:
    """Test photos for the page's gallery, each with its image and the probabilities from `names`."""
    with safe_open(require_file(packed_split("test")), framework="numpy") as file:
        pixels = file.get_slice("pixels")
        return [
            {
                "photo": row["photo"],
                "label": row["label"],
                "image": thumbnail(pixels[index]),
                "probabilities": {name: row[name] for name in names},
            }
            for index, row in photos.iterrows()
        ]


def name_excluded(split_table: pd.DataFrame) -> dict[str, list[str]]:
    """The first excluded photos for each reason, except those that were not needed because the splits were full."""
    excluded = split_table[~split_table["left_out"].isin(["", "not drawn"])]
    return {reason: rows["photo"].head(NAMED).tolist() for reason, rows in excluded.groupby("left_out")}


def flatten(params: dict, above: str = "") -> Iterator[tuple[str, object]]:
    """Yield the values of nested params with their dotted keys."""
    for key, value in params.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


if __name__ == "__main__":
    run_stage(main)
