"""Plots of the scores, as SVG for the report and as PNG files.

A plot is a function that draws on the given Axes, a panel of the caller's figure. On a page, plots use the page's
colours, which suit both light and dark mode.
"""

import io
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

Plot = Callable[[Axes], None]

PANEL = (4.4, 3.4)  # inches; small enough that 11-point text is readable on a phone
LONGEST_NAME = 18  # characters of a class name in a plot
SMOOTHED = 25  # a curve by step is smoothed over one part in so many of it
MAX_COUNTS = 10  # classes; with more, a confusion matrix has no room for numbers
MAX_TICKS = 25  # along one side of a confusion matrix
MAX_LETTERS = 24  # of class names along its width; more are turned upright
INK = "#1a1a1a"
SERIES = ("#0b62a4", "#c2410c", "#0f766e", "#9d174d", "#6d28d9", "#5f6b1c")  # one per network; INK for the ensemble
MARKERS = "osD^vP"  # one per network, for readers who cannot tell the colours apart
KEPT = {"color": INK, "linestyle": "none", "marker": "o", "markersize": 13, "markerfacecolor": "none"}  # the kept epoch
PERCENT = FuncFormatter(lambda share, _: f"{100 * share:.4g} %")
PAGE_COLOURS = {INK: "currentColor"} | {colour: f"var(--series-{n})" for n, colour in enumerate(SERIES, start=1)}

matplotlib.rcdefaults()  # ignore the user's matplotlibrc
matplotlib.rcParams |= {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    **{"grid.color": INK, "grid.alpha": 0.15, "axes.grid": True, "axes.axisbelow": True},
    **{"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False},
    **{"font.size": 11, "axes.titlesize": 12, "axes.titleweight": "bold", "axes.titlelocation": "left"},
    "svg.fonttype": "none",  # keep text as text
    "text.parse_math": False,  # a class name may contain $
}
# A class name may be in any script; the pages show it in the reader's fonts.
warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)


def svg(plot: Plot, name: str) -> str:
    """The plot as an <svg> element, for a page that defines --series-1 and so on; `name` makes its ids unique."""
    figure = Figure(PANEL, layout="constrained", facecolor="none")
    panel = figure.subplots()
    plot(panel)
    panel.set_facecolor("none")
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})  # savefig would lay everything out twice
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[\w.]+_\d+"', "", text)  # repeated in every plot, and never referenced
    text = re.sub(r"font-family: [^;\"]*", "font-family: inherit", text)
    for colour, page_colour in PAGE_COLOURS.items():
        text = text.replace(colour, page_colour)
    viewbox = re.findall(r'viewBox="[^"]*"', text)[0]
    return re.sub(r"<svg[^>]*>", f'<svg {viewbox} aria-hidden="true">', re.sub(r"\s*\n\s*", "\n", text), count=1)


def write_png(path: Path, plots: Sequence[Plot], scale: float = 1) -> None:
    """Write the plots into one PNG, at most three per row, in panels of `scale` times the usual size."""
    columns = min(len(plots), 3)
    rows = -(-len(plots) // columns)
    figure = Figure((columns * scale * PANEL[0], rows * scale * PANEL[1]), layout="constrained", dpi=110)
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for plot, panel in zip(plots, panels, strict=False):  # plots first, so that no panel is consumed when they run out
        plot(panel)
    for empty in panels:
        empty.set_axis_off()
    FigureCanvasAgg(figure).print_png(path, metadata={"Software": None})


def style_of(name: str, networks: Sequence[str]) -> dict:
    """Colour and marker of a network, or of the ensemble."""
    if name not in networks:
        return {"color": INK, "marker": "*"}
    index = list(networks).index(name)
    return {"color": SERIES[index % len(SERIES)], "marker": MARKERS[index % len(MARKERS)]}


def accuracies(scores: dict[str, dict], networks: Sequence[str]) -> Plot:
    """The accuracy of each network and of the ensemble, with its 95 % interval."""

    def draw(panel: Axes) -> None:
        for row, (name, values) in enumerate(scores.items()):
            accuracy = values["accuracy"]
            interval = [[accuracy - values["accuracy_low"]], [values["accuracy_high"] - accuracy]]
            panel.errorbar(accuracy, row, xerr=interval, capsize=5, markersize=9, **style_of(name, networks))
        panel.set_yticks(range(len(scores)), scores)
        panel.set_ylim(len(scores) - 0.5, -0.5)
        panel.grid(axis="y", visible=False)
        panel.xaxis.set_major_locator(MaxNLocator(5))
        panel.xaxis.set_major_formatter(PERCENT)
        panel.set_title("accuracy, with 95 % intervals")

    return draw


def losses(name: str, curve: pd.DataFrame, networks: Sequence[str]) -> Plot:
    """A network's train and validation loss by epoch; a circle marks the epoch that was kept."""

    def draw(panel: Axes) -> None:
        style = style_of(name, networks)
        panel.plot(curve["epoch"], curve["train_loss"], **style, linestyle="--", markerfacecolor="none", label="train")
        panel.plot(curve["epoch"], curve["validation_loss"], **style, label="validation")
        kept = curve[curve["kept"]]
        panel.plot(kept["epoch"], kept["validation_loss"], **KEPT, label="kept")
        panel.set_title(f"{name}: loss")
        panel.set_ylim(bottom=0)
        label_epochs(panel)

    return draw


def validation_accuracies(curves: dict[str, pd.DataFrame]) -> Plot:
    """Every network's validation accuracy by epoch."""

    def draw(panel: Axes) -> None:
        for name, curve in curves.items():
            panel.plot(curve["epoch"], curve["validation_accuracy"], **style_of(name, list(curves)), label=name)
        panel.set_title("validation accuracy")
        panel.yaxis.set_major_formatter(PERCENT)
        label_epochs(panel)

    return draw


def progress(kind: str, curve: pd.DataFrame, steps: pd.DataFrame, epochs: int | None) -> Plot:
    """A network's train loss or accuracy by step, also smoothed, and that on validation by epoch.

    `kind` is loss or accuracy. A table may be empty. `epochs` is how many there will be, if that is known.
    """

    def draw(panel: Axes) -> None:
        if len(steps):
            train = steps[f"train_{kind}"]
            smooth = train.rolling(-(-len(train) // SMOOTHED), min_periods=1).mean()
            panel.plot(steps["epoch"], train, color=SERIES[0], linewidth=0.8, alpha=0.35)
            panel.plot(steps["epoch"], smooth, color=SERIES[0], label="train, smoothed")
        if len(curve):
            validation = curve[f"validation_{kind}"]
            panel.plot(curve["epoch"], validation, color=SERIES[1], marker=MARKERS[1], label="validation")
            if "kept" in curve:
                panel.plot(curve["epoch"][curve["kept"]], validation[curve["kept"]], **KEPT, label="kept")
        panel.set_title(kind)
        if kind == "accuracy":
            panel.yaxis.set_major_formatter(PERCENT)
        else:
            panel.set_ylim(bottom=0)
        make_room_for(epochs, panel)
        label_epochs(panel)

    return draw


def learning_rate(steps: pd.DataFrame, epochs: int | None) -> Plot:
    """The head's learning rate, by epoch and by step."""
    per_epoch = steps["step"].iloc[-1] / steps["epoch"].iloc[-1]

    def draw(panel: Axes) -> None:
        panel.plot(steps["epoch"], steps["lr"], color=SERIES[2])
        panel.set(title="learning rate", xlabel="epoch")
        panel.set_ylim(bottom=0)
        panel.yaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:.3g}"))
        make_room_for(epochs, panel)
        top = panel.secondary_xaxis("top", functions=(lambda epoch: epoch * per_epoch, lambda step: step / per_epoch))
        top.set_xlabel("step")
        for axis in (panel.xaxis, top.xaxis):
            axis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))

    return draw


def make_room_for(epochs: int | None, panel: Axes) -> None:
    """Let the x axis reach to the last epoch, so that the plot shows how far training has come."""
    if epochs:
        panel.set_xlim(-0.03 * epochs, 1.03 * epochs)


def confusion_matrix(name: str, counts: np.ndarray, classes: Sequence[str]) -> Plot:
    """`counts` [classes, classes] of photos, by actual and predicted class; numbers only for up to MAX_COUNTS."""

    def draw(panel: Axes) -> None:
        panel.imshow(counts / counts.sum(axis=1, keepdims=True), cmap="Blues", vmin=0, vmax=1.4)
        if len(classes) <= MAX_COUNTS:
            for actual, predicted in np.ndindex(counts.shape):
                text = f"{counts[actual, predicted]:,}"
                size = max(9, 18 - len(classes))
                panel.text(predicted, actual, text, fontsize=size, ha="center", va="center")
        ticks = range(0, len(classes), -(-len(classes) // MAX_TICKS))
        names = [shorten(classes[tick]) for tick in ticks]
        panel.set_xticks(ticks, names, rotation=90 if sum(map(len, names)) > MAX_LETTERS else 0)
        panel.set_yticks(ticks, names)
        panel.set(title=name, xlabel="predicted", ylabel="actual")
        panel.grid(visible=False)

    return draw


def confusion_scale(classes: int) -> float:
    """The size of a confusion matrix, as a multiple of the usual panel."""
    return min(1 + (classes - 2) / 8, 2.5)


def roc(
    curves: dict[str, pd.DataFrame],
    counts: dict[str, np.ndarray],
    classes: Sequence[str],
    networks: Sequence[str],
    reach: float = 1.0,
) -> Plot:
    """ROC curves; `reach` below 1 shows only the upper left corner.

    With two classes a mark shows the threshold 0.5, from `counts` as in confusion_matrix.
    """

    def draw(panel: Axes) -> None:
        has_threshold = len(classes) == 2
        for name, curve in curves.items():
            style = style_of(name, networks)
            line = {"color": style["color"]} if has_threshold else {**style, "markevery": 0.2, "markersize": 5}
            rates = curve["false_positive_rate"], curve["true_positive_rate"]
            [shown] = panel.plot(*rates, **line, linewidth=1.5 if name in networks else 2.5)
            if has_threshold:
                found = counts[name][:, 1] / counts[name].sum(axis=1)  # false and true positive rate
                [shown] = panel.plot(*found, **style, clip_on=False)
            shown.set_label(name)
        margin = 0.02 * reach
        panel.set_xlim(-margin, reach + margin)
        panel.set_ylim(1 - reach - margin, 1 + margin)
        panel.set_title("ROC" if reach == 1 else "ROC, upper left corner")
        panel.set(xlabel="false positive rate", ylabel="true positive rate")
        if has_threshold:
            negative, positive = map(shorten, classes)
            panel.set(xlabel=f"{negative} classified as {positive}", ylabel=f"{positive} classified as {positive}")
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_locator(MaxNLocator(5))
            axis.set_major_formatter(PERCENT)
        panel.legend(loc="lower right")

    return draw


def reliability(name: str, table: pd.DataFrame, edges: Sequence[float], networks: Sequence[str]) -> Plot:
    """Mean confidence, and accuracy with its 95 % interval, of the predictions in each confidence range."""

    def draw(panel: Axes) -> None:
        x = np.searchsorted(edges[:-1], table["confidence_from"])
        panel.hlines(table["confidence"], x - 0.35, x + 0.35, color=INK, linewidth=2, label="mean confidence")
        interval = [table["accuracy"] - table["accuracy_low"], table["accuracy_high"] - table["accuracy"]]
        style = style_of(name, networks) | {"linestyle": "none", "capsize": 4, "markersize": 7}
        panel.errorbar(x, table["accuracy"], yerr=interval, **style, label="accuracy")
        panel.set_xticks(range(len(edges) - 1), [f"{100 * edge:g}" for edge in edges[:-1]])
        panel.set_xlim(-0.6, len(edges) - 1.4)
        panel.set_ylim(0, 1.03)
        panel.yaxis.set_major_formatter(PERCENT)
        panel.set(title=name, xlabel="confidence: from this % to the next", ylabel="accuracy")
        panel.legend(loc="lower right")

    return draw


def label_epochs(panel: Axes) -> None:
    """Label the x axis with whole epochs, and add the legend."""
    panel.set_xlabel("epoch")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    panel.legend()


def shorten(name: str) -> str:
    """A class name that leaves room for the plot."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
