"""Show a search: a table of its trials, a plot of its progress and of each param, and the trial to apply."""

import math
from collections.abc import Iterator

from pipeline.core.files import atomic_write
from pipeline.core.params import as_written
from pipeline.core.tool_paths import SEARCH
from pipeline.pages.plots import INK, KEPT, SERIES, Plot, write_png
from pipeline.search.study import finished_trials, is_base, name_of
from pipeline.search.trials import params_of

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from optuna import Study
from optuna.importance import get_param_importances
from optuna.trial import FrozenTrial, TrialState

PLOTS = SEARCH / "search.png"
LOSS = "calibrated validation loss"


def loss_of(trial: FrozenTrial) -> float:
    """Infinite if the trial did not complete."""
    return trial.value if trial.state == TrialState.COMPLETE and trial.value is not None else math.inf


def report(study: Study) -> Iterator[str]:
    """The lines that end a search: the trials, the best first, and how to apply it. Writes the plots."""
    trials = finished_trials(study)
    if not trials or not is_base(trials[0]):
        return
    base, best = trials[0], min(trials, key=loss_of)
    yield from table(study, sorted(trials, key=loss_of))
    yield ""
    if complete := [trial for trial in trials if math.isfinite(loss_of(trial))]:
        importances = get_importances(study, complete)
        with atomic_write() as write_to:
            write_png(write_to(PLOTS), [progress(complete), *(effect(complete, *item) for item in importances.items())])
        yield f"{PLOTS}: the losses, and how they depend on each param"
    current = f"the current params ({name_of(study, base.number)}: {loss_of(base):.4f})"
    if loss_of(best) >= loss_of(base):
        yield f"No trial has a lower {LOSS} than {current}."
        return
    name = name_of(study, best.number)
    yield f"{name} has a lower {LOSS} ({loss_of(best):.4f}) than {current}."
    yield f"To apply it and evaluate it, without training: dvc exp apply {name} && dvc repro"


def table(study: Study, trials: list[FrozenTrial]) -> Iterator[str]:
    keys = list(dict.fromkeys(key for trial in trials for key in trial.params))
    rows = [("", "trial", *keys, LOSS)]
    for place, trial in enumerate(trials, start=1):
        values = params_of(trial)
        outcome = trial.user_attrs["outcome"] + (", the current params" if is_base(trial) else "")
        is_ranked = math.isfinite(loss_of(trial))
        cells = (as_written(values[key]) if key in values else "" for key in keys)
        rows.append((str(place) if is_ranked else "-", name_of(study, trial.number), *cells, outcome))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def get_importances(study: Study, complete: list[FrozenTrial]) -> dict[str, float]:
    """The share of each param in how much the losses differ, the largest first; nan if there are too few trials.

    Without params that have an effect only in some trials.
    """
    common = [key for key in complete[0].params if all(key in trial.params for trial in complete)]
    values = {key: {trial.params[key] for trial in complete} for key in common}
    if min(map(len, values.values()), default=0) < 2 or len({trial.value for trial in complete}) < 2:
        return dict.fromkeys(values, math.nan)
    return get_param_importances(study, params=common)


def progress(trials: list[FrozenTrial]) -> Plot:
    """The loss of each trial, and the lowest so far."""

    def draw(panel: Axes) -> None:
        numbers, losses = [trial.number for trial in trials], [loss_of(trial) for trial in trials]
        lowest = [min(losses[: index + 1]) for index in range(len(losses))]
        panel.plot(numbers, losses, "o", color=SERIES[0], label="trial")
        panel.step(numbers, lowest, where="post", color=INK, label="lowest so far")
        panel.set(title=LOSS, xlabel="trial")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        panel.legend()

    return draw


def effect(trials: list[FrozenTrial], key: str, importance: float) -> Plot:
    """The loss of each trial by one param; a circle marks the current params."""

    def draw(panel: Axes) -> None:
        values = [trial.params[key] for trial in trials]
        is_number = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        x = values if is_number else [as_written(value) for value in values]
        panel.plot(x, [loss_of(trial) for trial in trials], "o", color=SERIES[0])
        base = next(index for index, trial in enumerate(trials) if is_base(trial))
        panel.plot(x[base], loss_of(trials[base]), **KEPT)
        if is_number and getattr(trials[0].distributions[key], "log", False):
            panel.set_xscale("log")
            panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            panel.xaxis.set_minor_formatter(NullFormatter())
        title = "" if math.isnan(importance) else f"importance: {100 * importance:.0f} %"
        panel.set(title=title, xlabel=f"{key} (circle: current)")

    return draw
