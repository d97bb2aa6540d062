"""The report's plots."""

from collections.abc import Mapping

from pipeline.pages import plots
from pipeline.pages.results import Results
from pipeline.scores.curves import confidence_edges

import numpy as np

PlotGroups = Mapping[str, Mapping[str, plots.Plot]]  # by kind, then by name


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
