"""Show all results on one page that opens offline, with its charts as pictures and two more tables for DVC's plots.

Usage, from the project's root: python stages/report.py
Reads metrics/, data/prepared/, params.yaml and dvc.yaml, and runs no network; writes metrics/report.html,
metrics/plots/ (the charts as PNG), metrics/roc/ and metrics/reliability/ (a table for each network and the ensemble).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out

from collections.abc import Iterator
from dataclasses import asdict
from itertools import pairwise

from catsdogs import CLASSES, charts
from catsdogs.errors import UserError
from catsdogs.files import PREPARED, existing, read_json, written_whole
from catsdogs.graph import read_stages
from catsdogs.pages import jpeg_uri, render, thumbnail
from catsdogs.params import read_params, without_folders
from catsdogs.process import run_stage
from catsdogs.scores import label_numbers, predicted_labels, probability_of_dog

import numpy as np
import pandas as pd
from markupsafe import Markup
from PIL import Image
from safetensors import safe_open
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, roc_curve

METRICS = Path("metrics")
ENSEMBLE = "ensemble"
WORST, LEAST_SURE = 24, 12  # photos shown
NAMED = 20  # photos named for each reason why they are left out
ANSWERED = (0.5, 0.9, 0.99, 0.999)  # the least sureness of answers that count
SURENESS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1)  # the edges between which predictions are counted


def main() -> None:
    params = asdict(without_folders(read_params()))
    scores = {ENSEMBLE: read_json(METRICS / "ensemble.json")} | read_json(METRICS / "evaluate.json")
    networks = [name for name in scores if name != ENSEMBLE]
    curves = {name: pd.read_csv(existing(METRICS / f"curves/{name}.csv")) for name in networks}
    split_table = pd.read_csv(existing(PREPARED / "split.csv"), keep_default_na=False)
    photos = read_test_photos(split_table, networks)

    labels = label_numbers(photos)
    counts = {name: confusion_matrix(labels, predicted_labels(photos[name]), labels=[0, 1]) for name in scores}
    roc = {name: roc_table(photos[name], labels) for name in scores}
    reliability = {name: reliability_table(photos[name], labels) for name in scores}
    enlarged = min(1, 3 * max(1 - values["accuracy"] for values in scores.values()) + 0.02)
    drawn = {
        "accuracy": {"all": charts.accuracies(scores, networks)},
        "learning_curves": {
            **{name: charts.losses(name, curve, networks) for name, curve in curves.items()},
            "validation accuracy": charts.validation_accuracies(curves),
        },
        "confusion": {name: charts.confusion_matrix(name, counts[name]) for name in scores},
        "roc": {
            "whole": charts.roc(roc, counts, networks),
            "corner": charts.roc(roc, counts, networks, enlarged),
        },
        "reliability": {name: charts.reliability(name, reliability[name], SURENESS, networks) for name in scores},
    }
    page = render(
        "report.html.jinja",
        scores=scores,
        networks=networks,
        classes=CLASSES,
        agreement=count_agreement(photos, networks, labels),
        counts=counts,
        mistakes=show(worst_mistakes(photos), list(scores)),
        least_sure=show(photos.iloc[sureness(photos[ENSEMBLE]).argsort(kind="stable")[:LEAST_SURE]], list(scores)),
        reliability={name: table.to_dict("records") for name, table in reliability.items()},
        answered=[count_right(photos[ENSEMBLE], labels, least, 1) for least in ANSWERED],
        curves={name: curve.to_dict("records") for name, curve in curves.items()},
        prepared=read_json(METRICS / "prepare.json"),
        left_out=name_left_out(split_table),
        contact_sheet=jpeg_uri(Image.open(existing(PREPARED / "contact_sheet.png"))),
        params=dict(flatten(params)),
        steps=read_stages(params),
        charts={
            kind: {name: Markup(charts.svg(chart, f"{kind} {name}")) for name, chart in some.items()}
            for kind, some in drawn.items()
            if kind != "confusion"  # a table there
        },
    )
    with written_whole() as write_to:
        write_to(METRICS / "report.html").write_text(page, encoding="utf-8")
        for kind, some in drawn.items():
            charts.write_png(write_to(METRICS / f"plots/{kind}.png"), list(some.values()))
        for name in scores:
            roc[name].to_csv(write_to(METRICS / f"roc/{name}.csv"), index=False)
            reliability[name].to_csv(write_to(METRICS / f"reliability/{name}.csv"), index=False)
    print(f"{METRICS}/report.html: {len(page) / 1e6:.1f} MB; open it in a browser")


def read_test_photos(split_table: pd.DataFrame, networks: list[str]) -> pd.DataFrame:
    """A row for each test photo, as their pixels are ordered: photo, label, and a column with the probability of dog
    for each network and for the ensemble.
    """
    photos = split_table.loc[split_table["split"] == "test", ["photo", "label"]].reset_index(drop=True)
    predictions = pd.read_csv(existing(METRICS / "predictions.csv"))
    predictions = predictions[predictions["split"] == "test"].assign(probability=probability_of_dog)
    combined = pd.read_csv(existing(METRICS / "ensemble_predictions.csv")).set_index("photo")["probability_of_dog"]
    photos = photos.join(predictions.pivot(index="photo", columns="network", values="probability"), on="photo")
    photos = photos.join(combined.rename(ENSEMBLE), on="photo")
    if photos[[*networks, ENSEMBLE]].isna().any(axis=None):
        raise UserError(
            f"the predictions in {METRICS} are not of the test photos in {PREPARED}; run `dvc repro` to fix this"
        )
    return photos


def sureness(probabilities: pd.Series) -> pd.Series:
    """How probable a prediction holds itself to be, from the probability of dog: from 0.5 to 1."""
    return np.maximum(probabilities, 1 - probabilities)


def count_right(probabilities: pd.Series, labels: np.ndarray, least: float, below: float) -> dict:
    """Of the predictions that are sure to `least` or more (and `below`, or 1): how many, how sure, how many right.

    `accuracy_low` and `accuracy_high` bound the accuracy's 95 % interval (Wilson's).
    """
    sure = sureness(probabilities)
    chosen = (sure >= least) & ((sure < below) | (below == 1))
    photos, right = int(chosen.sum()), int((predicted_labels(probabilities) == labels)[chosen].sum())
    counted = {"sure_from": least, "sure_to": below, "photos": photos, "right": right}
    if not photos:
        return counted
    interval = binomtest(right, photos).proportion_ci(confidence_level=0.95, method="wilson")
    return counted | {
        "sureness": round(float(sure[chosen].mean()), 6),
        "accuracy": round(right / photos, 6),
        "accuracy_low": round(interval.low, 6),
        "accuracy_high": round(interval.high, 6),
    }


def reliability_table(probabilities: pd.Series, labels: np.ndarray) -> pd.DataFrame:
    """A row of `count_right` for each range of SURENESS in which there are predictions."""
    rows = [count_right(probabilities, labels, least, below) for least, below in pairwise(SURENESS)]
    return pd.DataFrame([row for row in rows if row["photos"]])


def roc_table(probabilities: pd.Series, labels: np.ndarray) -> pd.DataFrame:
    """The ROC curve's corners, a dog being what is looked for."""
    false_positive_rate, true_positive_rate, _ = roc_curve(labels, probabilities)
    return pd.DataFrame(
        {"false_positive_rate": false_positive_rate.round(6), "true_positive_rate": true_positive_rate.round(6)}
    )


def count_agreement(photos: pd.DataFrame, networks: list[str], labels: np.ndarray) -> dict:
    """On how many photos all networks are wrong; on how many they differ, and how often the ensemble is right there."""
    right = photos[[*networks, ENSEMBLE]].apply(lambda column: predicted_labels(column) == labels)
    differ = right[networks].any(axis=1) & ~right[networks].all(axis=1)
    return {
        "all_wrong": int((~right[networks]).all(axis=1).sum()),
        "differ": int(differ.sum()),
        "differ_right": int(right.loc[differ, ENSEMBLE].sum()),
    }


def worst_mistakes(photos: pd.DataFrame) -> pd.DataFrame:
    """The ensemble's mistakes, the surest first."""
    mistaken = photos[predicted_labels(photos[ENSEMBLE]) != label_numbers(photos)]
    return mistaken.iloc[(-sureness(mistaken[ENSEMBLE])).argsort(kind="stable")[:WORST]]


def show(photos: pd.DataFrame, names: list[str]) -> list[dict]:
    """Rows of test photos for the page's gallery: each with its picture, and what `names` hold it to be."""
    with safe_open(existing(PREPARED / "test.safetensors"), framework="numpy") as file:
        pixels = file.get_slice("pixels")
        return [
            {
                "photo": row["photo"],
                "label": row["label"],
                "picture": thumbnail(pixels[place]),
                "probabilities": {name: row[name] for name in names},
            }
            for place, row in photos.iterrows()
        ]


def name_left_out(split_table: pd.DataFrame) -> dict[str, list[str]]:
    """For each reason why photos are left out, the first of them; of those that were not drawn none."""
    out = split_table[~split_table["left_out"].isin(["", "not drawn"])]
    return {reason: rows["photo"].head(NAMED).tolist() for reason, rows in out.groupby("left_out")}


def flatten(params: dict, above: str = "") -> Iterator[tuple[str, object]]:
    for key, value in params.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


if __name__ == "__main__":
    run_stage(main)
