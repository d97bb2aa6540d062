"""The report as HTML: one page that opens offline."""

from pipeline.core.all_params import Params, describe_own_params, without_folders
from pipeline.core.class_sizes import are_unequal, describe_few, needs_weights, rarest_class
from pipeline.core.files import read_json, require_file
from pipeline.core.packed import read_packed
from pipeline.core.params import flatten
from pipeline.core.paths import CONTACT_SHEET, PREPARE_SUMMARY, packed_split
from pipeline.core.sections.train import own_params
from pipeline.core.split_table import count_classes, describe_classes
from pipeline.pages import plots
from pipeline.pages.graph import stage_levels
from pipeline.pages.rendering import heat_uri, jpeg_uri, render, thumbnail
from pipeline.pages.report_plots import PlotGroups
from pipeline.pages.results import Results
from pipeline.scores.curves import calibration, confidence_edges, count_correct
from pipeline.scores.hardest import WORST, least_confident, worst_mistakes
from pipeline.scores.scoring import ENSEMBLE, accuracy_interval, predicted_labels

import numpy as np
import pandas as pd
from markupsafe import Markup
from PIL import Image

NAMED = 20  # excluded photos listed for each reason
FEW_CLASSES = 10  # with more, the page has shorter tables, and lists confusions instead of showing matrices
CONFIDENCES = (0.5, 0.9, 0.99, 0.999)  # minimum ones, for which the page counts mistakes


def render_page(params: Params, results: Results, plot_groups: PlotGroups) -> str:
    """The report as HTML."""
    return render(
        "report.html.jinja",
        main=results.main,
        has_ensemble=results.main == ENSEMBLE,
        networks=results.networks,
        classes=results.classes,
        few_classes=FEW_CLASSES,
        plots={
            kind: {name: Markup(plots.svg(plot, f"{kind} {name}")) for name, plot in group.items()}
            for kind, group in plot_groups.items()
            if kind != "confusion"  # the page has tables instead
        },
        **describe_scores(results),
        **describe_mistakes(results),
        **describe_confidence(results),
        **describe_training(params, results),
        **describe_photos(results),
    )


def describe_scores(results: Results) -> dict:
    """What the page says of scores, in total and by class."""
    by_class = {row["class"]: row for row in results.class_scores[results.main]}
    photos_by_class = {name: row["photos"] for name, row in by_class.items()}
    trained_on = count_classes(results.split_table, "train")
    rarest = rarest_class(trained_on)
    return {
        "scores": results.scores,
        "validation": results.validation,
        "class_scores": results.class_scores,
        "unequal": are_unequal(photos_by_class.values()),
        "rarest": {**by_class[rarest], "trained_on": trained_on[rarest]} if rarest else None,
        "needs_weights": needs_weights(trained_on, {name: row["recall"] for name, row in by_class.items()}),
        "few_photos": describe_few(photos_by_class),
        "combination": results.combination,
        "comparison": results.comparison,
        "agreement": count_agreement(results),
    }


def describe_mistakes(results: Results) -> dict:
    """What the page says of mistakes: confusions, and the hardest photos with heat maps."""
    combined = results.probabilities[results.main]
    return {
        "counts": results.counts,
        "confusions": list_confusions(results.counts[results.main], results.classes),
        "mistakes": show(worst_mistakes(combined, results.labels), results),
        "least_confident": show(least_confident(combined), results),
        "heat_maps": list(results.heat_maps),
        "rejected": count_rejected(results.rejection) if len(results.rejection) else None,
        "rejected_photos": show(least_similar(results.rejection), results, explain=False),
    }


def describe_confidence(results: Results) -> dict:
    """What the page says of probabilities: how well calibrated they are, and the mistakes above a confidence."""
    combined = results.probabilities[results.main]
    least = confidence_edges(len(results.classes))[0]
    return {
        "reliability": {name: table.to_dict("records") for name, table in results.reliability.items()},
        "calibration": calibration,
        "by_confidence": [count_correct(combined, results.labels, edge, 1) for edge in sorted({least, *CONFIDENCES})],
    }


def find_unweighted(params: Params) -> list[str]:
    """The params that would have every class count equally in the training of all networks."""
    trains = [own_params(name, network, params.lr, params.train)["train"] for name, network in params.networks.items()]
    return [*dict.fromkeys(train.key("class_weights") for train in trains if train.class_weights == "none")]


def describe_training(params: Params, results: Results) -> dict:
    """What the page says of how the results came about: learning curves, params and stages."""
    values = dict(flatten(without_folders(params).model_dump()))
    values = {key: ", ".join(value) if isinstance(value, tuple) else value for key, value in values.items()}
    return {
        "curves": {name: curve.to_dict("records") for name, curve in results.curves.items()},
        "kept_epochs": results.kept_epochs,
        "params": values,
        "own_params": describe_own_params(params),
        "to_balance": find_unweighted(params),
        "steps": stage_levels(values),
    }


def describe_photos(results: Results) -> dict:
    """What the page says of the prepared photos."""
    return {
        "prepared": read_json(PREPARE_SUMMARY),
        "photos_by_class": describe_classes(results.split_table),
        "excluded": name_excluded(results.split_table),
        "contact_sheet": jpeg_uri(Image.open(require_file(CONTACT_SHEET))),
    }


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


def count_rejected(table: pd.DataFrame) -> dict:
    """How many test photos are rejected, and the 95 % interval of their share."""
    rejected = int(table["rejected"].sum())
    interval = accuracy_interval(rejected, len(table))
    return {"photos": rejected, "low": interval["accuracy_low"], "high": interval["accuracy_high"]}


def least_similar(table: pd.DataFrame) -> np.ndarray:
    """The rows of the rejected photos that are least similar to those in train, the least similar first."""
    return table[table["rejected"]].sort_values("similarity", kind="stable").index[:WORST].to_numpy()


def name_excluded(split_table: pd.DataFrame) -> dict[str, list[str]]:
    """The first excluded photos for each reason, except those that were not needed because the splits were full."""
    excluded = split_table[~split_table["excluded"].isin(["", "not needed"])]
    return {str(reason): rows["photo"].head(NAMED).tolist() for reason, rows in excluded.groupby("excluded")}
