"""Show cross-validation: as text for a terminal, and as plots."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.core.class_sizes import are_unequal
from pipeline.folds.joining import Joined
from pipeline.folds.scoring import ALL
from pipeline.pages.plots import PERCENT, Plot, confusion_matrix, confusion_scale, style_of, write_png
from pipeline.scores.scoring import ENSEMBLE, predicted_labels

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import confusion_matrix as count_confused

SHOWN = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "log_loss": "log loss"}


def describe(held_out: Joined, scores: pd.DataFrame) -> Iterator[str]:
    """Lines of text: the photos, then of each network and the ensemble the scores of all folds and of each."""
    photos, scored = held_out.photos, held_out.scored()
    copies = len(photos) - len(scored.photos)
    unequal = are_unequal(np.bincount(scored.labels).tolist())
    yield (
        f"{len(scored.photos):,} photos of train and validation"
        + (f", without {copies:,} copies" if copies else "")
        + f"; each was predicted by models that never saw it, in {photos['fold'].max()} folds"
    )
    for name, rows in scores.groupby("network", sort=False):
        table = pd.DataFrame({"fold": rows["fold"], "photos": rows["photos"], "correct": rows["correct"]})
        for key, title in SHOWN.items():
            if key != "balanced_accuracy" or unequal:
                table[title] = [
                    f"{value:.4f} ({low:.4f} to {high:.4f})"
                    for value, low, high in rows[[key, f"{key}_low", f"{key}_high"]].to_numpy()
                ]
        if name != ENSEMBLE:
            table["kept epoch"] = rows["kept_epoch"]
        yield from ("", str(name), *(f"  {line.rstrip()}" for line in table.to_string(index=False).splitlines()))
        [together] = rows[rows["fold"] == ALL].to_dict("records")
        yield from (f"  {line}" for line in _remarks(together, len(rows) - 1))
    yield ""
    yield "In brackets: 95 % intervals over photos; they do not cover other photos or another seed in training."


def _remarks(scores: Mapping[Any, Any], folds: int) -> Iterator[str]:
    """How far the folds differ, and how optimistic the scores of the photos that decided something would be."""
    by_chance = math.sqrt(scores["accuracy"] * (1 - scores["accuracy"]) * folds / scores["photos"])
    spread = float(scores["accuracy_sd_over_folds"])  # the column is text, because folds have none
    yield f"accuracy over folds: SD {spread:.4f}; {by_chance:.4f} is expected by chance"
    yield (
        f"on the photos that chose the weights: accuracy {scores['validation_accuracy']:.4f}, "
        f"log loss {scores['validation_log_loss']:.4f}"
    )


def write_plots(path: Path, held_out: Joined, scores: pd.DataFrame) -> None:
    """Write a PNG: the accuracy of each fold, and the confusion matrix of each network and the ensemble."""
    scored = held_out.scored()
    classes = range(len(scored.classes))
    matrices = [
        confusion_matrix(name, count_confused(scored.labels, predicted_labels(values), labels=classes), scored.classes)
        for name, values in scored.probabilities.items()
    ]
    write_png(path, [accuracies_by_fold(scores), *matrices], confusion_scale(len(classes)))


def accuracies_by_fold(scores: pd.DataFrame) -> Plot:
    """The accuracy of all folds and of each, with 95 % intervals; several networks are next to each other."""

    def draw(panel: Axes) -> None:
        names = scores["network"].unique().tolist()
        networks = [name for name in names if name != ENSEMBLE]
        folds = scores["fold"].unique().tolist()
        for number, name in enumerate(names):
            rows = scores[scores["network"] == name]
            y = np.arange(len(folds)) + (number + 1) / (len(names) + 1) - 0.5
            reach = [rows["accuracy"] - rows["accuracy_low"], rows["accuracy_high"] - rows["accuracy"]]
            style = style_of(name, networks) | {"linestyle": "none", "capsize": 3, "markersize": 6, "label": name}
            panel.errorbar(rows["accuracy"], y, xerr=reach, **style)
        panel.axhline(0.5, color="#1a1a1a", linewidth=0.8)
        panel.set_yticks(range(len(folds)), ["all folds" if fold == ALL else f"fold {fold}" for fold in folds])
        panel.set_ylim(len(folds) - 0.5, -0.5)
        panel.grid(axis="y", visible=False)
        panel.xaxis.set_major_locator(MaxNLocator(5))
        panel.xaxis.set_major_formatter(PERCENT)
        panel.set_title("accuracy, with 95 % intervals")
        if len(names) > 1:
            panel.legend(loc="lower left")

    return draw
