"""A comparison as text, for a terminal: what was compared, the differences, and what the numbers mean."""

import textwrap
from collections.abc import Iterator

from pipeline.core.errors import list_some
from pipeline.runs.comparing import LABEL_WIDTH, Comparison, Recipe, describe_changes
from pipeline.runs.differences import SIGNIFICANT
from pipeline.runs.reading import SEED, Run
from pipeline.runs.reading_folds import FOLDED
from pipeline.scores.scoring import ENSEMBLE

WIDTH = 100  # of the output, in columns


def say_split(split: str, run: Run) -> list[str]:
    photos = f"{len(run.photos):,} {split} photos"
    if split == FOLDED:
        return wrap(f"Judged on {photos}, each by models that never saw it (--folds).")
    if split == "validation":
        return [f"Judged on {photos}."]
    return wrap(
        f"Judged on {photos} (--split test). They give unbiased scores only if you do not choose a run by them; choose "
        "by validation, without --split."
    )


def say_missing(units: list[Recipe], comparisons: dict[str, list[Comparison]], split: str) -> Iterator[str]:
    """Say which networks are not compared because a run lacks them."""
    for network, compared in comparisons.items():
        lacking = [unit.label for unit in units if not unit.has(network)]
        if lacking and network == ENSEMBLE and split != FOLDED:
            yield from wrap(
                f"The ensemble is not compared for {list_some(lacking)}: its weights were fitted to the {split} photos "
                "(fitted_weights). Use --split test."
            )
        elif lacking:
            scope = "is compared only where it exists" if compared else "is not compared"
            yield from wrap(f"{network} {scope}: {list_some(lacking)} {'has' if len(lacking) == 1 else 'have'} none.")


def legend(units: list[Recipe], pooled: Recipe | None) -> Iterator[str]:
    """A line for each recipe: its runs, and how it differs from the first one."""
    if pooled:
        yield f"These runs differ only in {SEED}: any difference between them is due to the seed."
    width = max(len(unit.label) for unit in units)
    for unit in units:
        text = f"  {unit.label:<{width}}  {describe_recipe(unit, units[0])}"
        yield from wrap(text, indent=width + 4)


def describe_recipe(unit: Recipe, first: Recipe) -> str:
    """Its commits, seeds, and the params and code that differ from those of the first recipe."""
    run = unit.runs[0]
    names = ", ".join(
        f"{run.name} {run.commit}".strip() if len(unit.runs) > 1 or len(run.name) > LABEL_WIDTH else run.commit
        for run in unit.runs
    )
    parts = [names] if names else []
    if len(unit.runs) > 1:
        parts.append(f"seeds {', '.join(str(run.seed) for run in unit.runs)}")
    if unit is not first:
        keys = dict.fromkeys(first.runs[0].params | run.params)
        if len(unit.runs) + len(first.runs) > 2:
            del keys[SEED]
        parts.append(describe_changes(first.runs[0], run, keys) or "the same params")
    code = first.runs[0].code.items()
    if changed := sorted({path for run in unit.runs for path, _ in code ^ run.code.items()}):
        parts.append(f"different code: {list_some(changed)}")
    return "; ".join(parts)


def report(comparisons: dict[str, list[Comparison]], pooled: Recipe | None) -> Iterator[str]:
    """A block for each network and the ensemble."""
    for network, compared in comparisons.items():
        if not compared:
            continue
        yield from ("", network)
        units = [compared[0].before, *(comparison.after for comparison in compared)]
        width = max(len(unit.label) for unit in units)
        if pooled:
            yield f"  all {len(pooled.runs)} seeds: {pooled.describe(network)}"
        for unit, comparison in zip(units, [None, *compared], strict=True):
            yield f"  {unit.label:<{width}}  {unit.describe(network)}"
            if comparison:
                if not comparison.is_identical():
                    yield from (f"    {name:<8}  {fact}" for name, fact in comparison.facts().items())
                yield from wrap(f"    {comparison.sentence()}", indent=4)


def explain(units: list[Recipe]) -> list[str]:
    """What kind of chance the intervals cover, and what the p-values are."""
    several = any(len(unit.runs) > 1 for unit in units)
    tested = len(units[0].runs) > 1 and any(len(unit.runs) > 1 for unit in units[1:])
    lines = [f"Differences are from {units[0].label}."]
    lines.append(
        "Over photos: the chance of which photos were chosen, for these trained models. It does not cover the seed: "
        "the same recipe gives different answers with a different seed."
        + ("" if several else f" To see how much, run each recipe with several values of {SEED} and name all the runs.")
    )
    if tested:
        lines.append(
            "Over seeds: the chance of training, on these photos, from the spread of the seeds' means (Welch)."
        )
    elif several:
        lines.append("Not tested over seeds: that needs at least two seeds of both recipes.")
    if len(units) > 2:
        lines.append(
            f"p is corrected by Holm's method for the {len(units) - 1} comparisons of a network; intervals are not."
        )
    lines.append(
        f"More than chance: p < {SIGNIFICANT}. The number of photos needed is for a power of 80 %, if the same share "
        "of photos changes."
    )
    return [line for text in lines for line in wrap(text)]


def wrap(text: str, indent: int = 0) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        subsequent_indent=" " * indent,
        drop_whitespace=True,
        break_long_words=False,
        break_on_hyphens=False,
    )
