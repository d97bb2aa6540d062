"""Charts of how well the networks tell cats from dogs: drawn once, for a page (SVG) and as a picture (PNG).

A chart is a function that draws into a panel; the callers choose the panels. On a page its colours are the page's own,
so that they suit a light and a dark one.
"""

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from catsdogs import CLASSES

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

Chart = Callable[[Axes], None]

PANEL = (4.4, 3.4)  # inches, which makes letters of 11 points easy to read on a phone, too
INK = "#1a1a1a"
SERIES = ("#0b62a4", "#c2410c", "#0f766e", "#9d174d", "#6d28d9", "#5f6b1c")  # a network each; the ensemble has INK
MARKERS = "osD^vP"  # for eyes that do not tell the colours apart
PERCENT = FuncFormatter(lambda share, _: f"{100 * share:.4g} %")
PAGE_COLOURS = {INK: "currentColor"} | {colour: f"var(--series-{n})" for n, colour in enumerate(SERIES, start=1)}

matplotlib.rcdefaults()  # and not what the user's own matplotlibrc says
matplotlib.rcParams |= {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    **{"grid.color": INK, "grid.alpha": 0.15, "axes.grid": True, "axes.axisbelow": True},
    **{"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False},
    **{"font.size": 11, "axes.titlesize": 12, "axes.titleweight": "bold", "axes.titlelocation": "left"},
    "svg.fonttype": "none",  # letters stay letters
}


def svg(chart: Chart, name: str) -> str:
    """The chart as an <svg> element for a page that sets --series-1 and so on; `name` keeps its ids apart."""
    figure = Figure(PANEL, layout="constrained")
    chart(figure.subplots())
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[\w.]+_\d+"', "", text)  # counted anew in each chart, and referred to nowhere
    text = re.sub(r"font-family: [^;\"]*", "font-family: inherit", text)
    for colour, page_colour in PAGE_COLOURS.items():
        text = text.replace(colour, page_colour)
    viewbox = re.search(r'viewBox="[^"]*"', text)[0]
    return re.sub(r"<svg[^>]*>", f'<svg {viewbox} aria-hidden="true">', re.sub(r"\s*\n\s*", "\n", text), count=1)


def write_png(path: Path, charts: Sequence[Chart]) -> None:
    """The charts side by side, at most three in a row, as one picture."""
    columns = min(len(charts), 3)
    rows = -(-len(charts) // columns)
    figure = Figure((columns * PANEL[0], rows * PANEL[1]), layout="constrained", dpi=110)
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for chart, panel in zip(charts, panels, strict=False):  # in this order: the charts end first
        chart(panel)
    for empty in panels:
        empty.set_axis_off()
    figure.savefig(path, format="png", metadata={"Software": None})


def style_of(name: str, networks: Sequence[str]) -> dict:
    """Colour and marker of a network, or of the ensemble."""
    if name not in networks:
        return {"color": INK, "marker": "*"}
    place = list(networks).index(name)
    return {"color": SERIES[place % len(SERIES)], "marker": MARKERS[place % len(MARKERS)]}


def accuracies(scores: dict[str, dict], networks: Sequence[str]) -> Chart:
    """Each accuracy with its 95 % interval, from the scores of each network and of the ensemble."""

    def draw(panel: Axes) -> None:
        for place, (name, values) in enumerate(scores.items()):
            accuracy = values["accuracy"]
            interval = [[accuracy - values["accuracy_low"]], [values["accuracy_high"] - accuracy]]
            panel.errorbar(accuracy, place, xerr=interval, capsize=5, markersize=9, **style_of(name, networks))
        panel.set_yticks(range(len(scores)), scores)
        panel.set_ylim(len(scores) - 0.5, -0.5)
        panel.grid(axis="y", visible=False)
        panel.xaxis.set_major_locator(MaxNLocator(5))
        panel.xaxis.set_major_formatter(PERCENT)
        panel.set_title("accuracy, with 95 % intervals")

    return draw


def losses(name: str, curve: pd.DataFrame, networks: Sequence[str]) -> Chart:
    """Loss on train and on validation, by epoch."""

    def draw(panel: Axes) -> None:
        style = style_of(name, networks)
        panel.plot(curve["epoch"], curve["train_loss"], **style, linestyle="--", markerfacecolor="none", label="train")
        panel.plot(curve["epoch"], curve["validation_loss"], **style, label="validation")
        panel.set_title(f"{name}: loss")
        panel.set_ylim(bottom=0)
        label_epochs(panel)

    return draw


def validation_accuracies(curves: dict[str, pd.DataFrame]) -> Chart:
    """Accuracy on validation, by epoch, of every network."""

    def draw(panel: Axes) -> None:
        for name, curve in curves.items():
            panel.plot(curve["epoch"], curve["validation_accuracy"], **style_of(name, list(curves)), label=name)
        panel.set_title("validation accuracy")
        panel.yaxis.set_major_formatter(PERCENT)
        label_epochs(panel)

    return draw


def confusion_matrix(name: str, counts: np.ndarray) -> Chart:
    """`counts` [2, 2] of photos, by actual class and by predicted class."""

    def draw(panel: Axes) -> None:
        panel.imshow(counts / counts.sum(axis=1, keepdims=True), cmap="Blues", vmin=0, vmax=1.4)
        for actual, predicted in np.ndindex(counts.shape):
            text = f"{counts[actual, predicted]:,}"
            panel.text(predicted, actual, text, horizontalalignment="center", verticalalignment="center", fontsize=16)
        panel.set_xticks(range(len(CLASSES)), CLASSES)
        panel.set_yticks(range(len(CLASSES)), CLASSES)
        panel.set(title=name, xlabel="predicted", ylabel="actual")
        panel.grid(visible=False)

    return draw


def roc(
    curves: dict[str, pd.DataFrame], counts: dict[str, np.ndarray], networks: Sequence[str], reach: float = 1.0
) -> Chart:
    """Each ROC curve, a dog being what is looked for, with a mark where `counts` (as in confusion_matrix) put it.

    `reach` below 1 enlarges the upper left corner.
    """

    def draw(panel: Axes) -> None:
        for name, curve in curves.items():
            style = style_of(name, networks)
            rates = curve["false_positive_rate"], curve["true_positive_rate"]
            panel.plot(*rates, color=style["color"], linewidth=1.5 if name in networks else 2.5)
            called_dogs = counts[name][:, 1] / counts[name].sum(axis=1)  # of the cats, of the dogs
            panel.plot(*called_dogs, **style, clip_on=False, label=name)
        margin = 0.02 * reach
        panel.set_xlim(-margin, reach + margin)
        panel.set_ylim(1 - reach - margin, 1 + margin)
        panel.set_title("ROC" if reach == 1 else "ROC, its corner enlarged")
        panel.set(xlabel="cats called dogs", ylabel="dogs found")
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_locator(MaxNLocator(5))
            axis.set_major_formatter(PERCENT)
        panel.legend(loc="lower right")

    return draw


def reliability(name: str, table: pd.DataFrame, edges: Sequence[float], networks: Sequence[str]) -> Chart:
    """How sure predictions are between each two `edges`, and how often right, with the 95 % interval."""

    def draw(panel: Axes) -> None:
        places = np.searchsorted(edges[:-1], table["sure_from"])
        panel.hlines(table["sureness"], places - 0.35, places + 0.35, color=INK, linewidth=2, label="how sure")
        interval = [table["accuracy"] - table["accuracy_low"], table["accuracy_high"] - table["accuracy"]]
        style = style_of(name, networks) | {"linestyle": "none", "capsize": 4, "markersize": 7}
        panel.errorbar(places, table["accuracy"], yerr=interval, **style, label="how often right")
        panel.set_xticks(range(len(edges) - 1), [f"{100 * edge:g}" for edge in edges[:-1]])
        panel.set_xlim(-0.6, len(edges) - 1.4)
        panel.set_ylim(0, 1.03)
        panel.yaxis.set_major_formatter(PERCENT)
        panel.set(title=name, xlabel="sure from this % up to the next", ylabel="right")
        panel.legend(loc="lower right")

    return draw


def label_epochs(panel: Axes) -> None:
    panel.set_xlabel("epoch")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    panel.legend()
