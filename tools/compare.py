"""Compare the stored predictions of runs on the same photos, and say which differences are more than chance.

A run is a git revision, branch or tag, the name of a DVC experiment, or `workspace`. Their predictions are read from
DVC's cache or remote; nothing is checked out or run. The first run is the one that the others are compared with. Runs
that differ only in train.seed are pooled. docs/compare.md explains the output.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

import argparse
import functools
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pipeline.core import WORKSPACE
from pipeline.core.command_line import ArgumentParser
from pipeline.core.errors import UserError, list_some
from pipeline.core.files import atomic_write
from pipeline.core.params import as_written
from pipeline.core.paths import SPLIT_TABLE, packed_split
from pipeline.core.process import check_first, run_stage
from pipeline.core.tool_paths import COMPARE_PAGE


def read_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN",
        help=f"two or more runs; one is compared with {WORKSPACE}; without any, HEAD is",
    )
    parser.add_argument(
        "--split",
        choices=("validation", "test"),
        default="validation",
        help="judge on these photos; default: validation",
    )
    parser.add_argument(
        "--html", action="store_true", help=f"also write {COMPARE_PAGE}, with the photos that changed sides"
    )
    arguments = parser.parse_args()
    if len(arguments.runs) < 2:
        arguments.runs = [*(arguments.runs or ["HEAD"]), WORKSPACE]
    if repeated := [name for name in arguments.runs if arguments.runs.count(name) > 1]:
        parser.error(f"{repeated[0]} is given twice")
    return arguments


if __name__ == "__main__":
    check_first(read_arguments)

from pipeline.core.packed import read_packed
from pipeline.core.split_table import read_split_table
from pipeline.pages.rendering import render, thumbnail
from pipeline.runs.differences import (
    SIGNIFICANT,
    Difference,
    accuracy_over_photos,
    changes,
    holm,
    log_loss_over_photos,
    over_seeds,
    photos_needed,
    visible_difference,
)
from pipeline.runs.reading import SEED, Run, read_run
from pipeline.scores.scoring import ENSEMBLE

import numpy as np
import pandas as pd

WIDTH = 100  # of the output, in columns
LABEL_WIDTH = 20
LISTED = 8  # params that differ
SHOWN = 60  # photos with images, of those that one comparison corrects or breaks


@dataclass(frozen=True)
class Recipe:
    """Runs that differ only in their seed, often just one."""

    runs: list[Run]

    @property
    def label(self) -> str:
        name = self.runs[0].name
        seeds = f" ({len(self.runs)} seeds)" if len(self.runs) > 1 else ""
        room = LABEL_WIDTH - len(seeds)
        return (name if len(name) <= room else f"{name[: room - 1]}…") + seeds

    def has(self, network: str) -> bool:
        return all(network in run.answers for run in self.runs)

    def correct(self, network: str) -> np.ndarray:
        return np.stack([run.answers[network].correct for run in self.runs])

    def log_loss(self, network: str) -> np.ndarray:
        return np.stack([run.answers[network].log_loss for run in self.runs])

    def describe(self, network: str) -> str:
        """Its accuracy and log loss; over several seeds their means, standard deviations and range."""
        correct, log_loss = self.correct(network), self.log_loss(network)
        accuracies, losses = correct.mean(axis=1), log_loss.mean(axis=1)
        if len(self.runs) == 1:
            counted = f"{correct.sum():,} of {correct.size:,}"
            return f"accuracy {accuracies[0]:.4f} ({counted}), log loss {losses[0]:.4f}"
        spread = f"SD {accuracies.std(ddof=1):.4f}, {accuracies.min():.4f} to {accuracies.max():.4f}"
        return (
            f"accuracy {accuracies.mean():.4f} ({spread}), log loss {losses.mean():.4f} (SD {losses.std(ddof=1):.4f})"
        )


@dataclass(frozen=True)
class Comparison:
    """A recipe compared with the first one, for one network or the ensemble."""

    network: str
    before: Recipe
    after: Recipe
    same_recipe: bool  # only the seed differs
    accuracy: Difference
    log_loss: Difference
    accuracy_over_seeds: Difference | None
    log_loss_over_seeds: Difference | None
    p: dict[str, float] = field(default_factory=dict)  # of the differences by their names, after Holm's correction

    @functools.cached_property
    def changes(self) -> np.ndarray:
        return changes(self.before.correct(self.network), self.after.correct(self.network))

    @property
    def pooled(self) -> bool:
        return len(self.before.runs) + len(self.after.runs) > 2

    @property
    def _runs(self) -> list[Run]:
        return [*self.before.runs, *self.after.runs]

    def is_identical(self) -> bool:
        """Whether all runs give every photo the same probabilities."""
        first, *others = [run.answers[self.network] for run in self._runs]
        return all(
            first.classes == other.classes and np.array_equal(first.probabilities, other.probabilities)
            for other in others
        )

    def is_same_model(self) -> bool:
        """Whether all runs have the same model, byte for byte."""
        return len({run.models.get(self.network, run.name) for run in self._runs}) == 1

    def facts(self) -> dict[str, str]:
        """The numbers, as text."""
        corrected, broken = (self.changes > 0).sum(), (self.changes < 0).sum()
        if self.pooled:
            counted, test = f"{corrected:,} more often correct, {broken:,} less often", "exact test"
        else:
            counted, test = f"{corrected:,} corrected, {broken:,} broken", "McNemar's exact test"
        facts = {
            "accuracy": describe_difference(self.accuracy, self.accuracy_over_seeds),
            "photos": f"{counted}; {test}: {self.describe_p('accuracy')}",
        }
        if self.accuracy_over_seeds:
            facts["seeds"] = f"Welch's test: {self.describe_p('accuracy_over_seeds')}"
        return facts | {"log loss": describe_difference(self.log_loss, self.log_loss_over_seeds)}

    def describe_p(self, name: str) -> str:
        p, corrected = getattr(self, name).p, self.p[name]
        return f"p {show_p(p)}" + (f" (Holm: p {show_p(corrected)})" if corrected != p else "")

    def sentence(self) -> str:
        """What it all means: better, worse or within chance."""
        if self.is_identical():
            if not self.is_same_model():
                return "The same: the predictions are identical."
            is_head = all(run.kept_epochs.get(self.network) == 0 for run in self._runs)
            return "The same model" + (": the fitted head, because no training improved on it." if is_head else ".")
        verdict = "Better" if self.accuracy.mean > 0 else "Worse"
        if self.p["accuracy"] < SIGNIFICANT:
            if self.same_recipe:
                return f"{verdict}, but only by the chance of the seed: the recipe is the same."
            if not self.accuracy_over_seeds:
                return f"{verdict} for these trained models; not tested over seeds." if self.pooled else f"{verdict}."
            if self.p["accuracy_over_seeds"] < SIGNIFICANT:
                return f"{verdict}, over photos and over seeds."
            return f"{verdict} for these trained models, but within chance over seeds."
        return self._within_chance() + self._of_log_loss()

    def _within_chance(self) -> str:
        beyond_seeds = self.accuracy_over_seeds and self.p["accuracy_over_seeds"] < SIGNIFICANT
        within = "Within chance over photos, though not over seeds" if beyond_seeds else "Within chance"
        samples = self.before.correct(self.network), self.after.correct(self.network)
        if needed := photos_needed(*samples):
            return f"{within}; about {about(needed)} photos would be needed to see a difference this small."
        if not self.changes.any():
            return f"{within}: the same photos are correct."
        visible = visible_difference(*samples)
        return f"{within}: accuracy is the same; a difference of {visible:.4f} or more would probably have been seen."

    def _of_log_loss(self) -> str:
        names = ["log_loss"] + (["log_loss_over_seeds"] if self.log_loss_over_seeds else [])
        if any(self.p[name] >= SIGNIFICANT for name in names):
            return ""
        return f" Log loss is {'lower' if self.log_loss.mean < 0 else 'higher'} by more than chance."


def main() -> None:
    arguments = read_arguments()
    split = arguments.split
    runs = [read_run(name, split) for name in arguments.runs]
    for run in runs[1:]:
        require_same_photos(runs[0], run, split)
    recipes = pool(runs)
    same_recipe = len(recipes) == 1
    units = [Recipe([run]) for run in runs] if same_recipe else recipes
    comparisons = {network: compare(network, units, same_recipe) for network in networks_of(units)}
    if not any(comparisons.values()):
        raise UserError(f"{list_some(arguments.runs)} have no network in common; nothing can be compared")

    notes = [*say_split(split, runs[0]), *say_missing(units, comparisons, split)]
    pooled = recipes[0] if same_recipe else None
    print("\n".join([*notes, "", *legend(units, pooled), *report(comparisons, pooled), "", *explain(units)]))
    if arguments.html:
        write_page(comparisons, units, notes, explain(units), split)
        print(f"\nThe photos that changed sides: {COMPARE_PAGE}")


# ---- what can be compared ----


def require_same_photos(first: Run, other: Run, split: str) -> None:
    """Raise UserError unless both runs were judged on the same photos with the same labels and classes."""
    pair = f"{first.name} and {other.name} cannot be paired"
    [classes, others] = [next(iter(run.answers.values())).classes for run in (first, other)]
    if set(classes) != set(others):
        raise UserError(f"{pair}: their classes are {list_some(classes)} and {list_some(others)}")
    hashes, other_hashes = (run.photos["sha256"].tolist() for run in (first, other))
    if hashes != other_hashes:
        keys = [key for key in first.params | other.params if key.startswith("prepare.")]
        because = describe_changes(first, other, keys) or "their archives have different photos"
        shared = len(set(hashes) & set(other_hashes))
        raise UserError(
            f"{pair}: their {split} photos are not the same ({len(hashes):,} and {len(other_hashes):,}, of which they "
            f"share {shared:,}); {because}"
        )
    if differing := int((first.photos["label"] != other.photos["label"]).sum()):
        raise UserError(f"{pair}: {differing:,} of their {split} photos have different labels")


def describe_changes(first: Run, other: Run, keys: Iterable[str]) -> str:
    """`lr 0.0005 instead of 0.001`, for those of the params `keys` that differ."""
    changes = []
    for key in keys:
        if key not in other.params:
            changes.append(f"no {key}")
        elif key not in first.params:
            changes.append(f"also {key} {as_written(other.params[key])}")
        elif other.params[key] != first.params[key]:
            changes.append(f"{key} {as_written(other.params[key])} instead of {as_written(first.params[key])}")
    return list_some(changes, LISTED)


def pool(runs: list[Run]) -> list[Recipe]:
    """Pool the runs that differ only in their seed; one with a seed that its recipe has already starts another one.

    Runs with different code are different recipes.
    """
    recipes: list[Recipe] = []
    for run in runs:
        for recipe in recipes:
            differing = {key for key in run.params | recipe.runs[0].params if _differs(key, run, recipe.runs[0])}
            if (
                differing <= {SEED}
                and run.code == recipe.runs[0].code
                and run.seed not in [other.seed for other in recipe.runs]
            ):
                recipe.runs.append(run)
                break
        else:
            recipes.append(Recipe([run]))
    return recipes


def _differs(key: str, run: Run, other: Run) -> bool:
    return run.params.get(key) != other.params.get(key)


def networks_of(units: list[Recipe]) -> list[str]:
    """All networks, in the order in which they first appear, and then the ensemble."""
    names = dict.fromkeys(network for unit in units for run in unit.runs for network in run.answers)
    return sorted(names, key=lambda name: name == ENSEMBLE)


def compare(network: str, units: list[Recipe], same_recipe: bool) -> list[Comparison]:
    """Compare each recipe with the first one, if both have the network."""
    first, *others = units
    others = [unit for unit in others if unit.has(network)] if first.has(network) else []
    compared = []
    for other in others:
        correct = first.correct(network), other.correct(network)
        log_loss = first.log_loss(network), other.log_loss(network)
        compared.append(
            Comparison(
                network=network,
                before=first,
                after=other,
                same_recipe=same_recipe,
                accuracy=accuracy_over_photos(*correct),
                log_loss=log_loss_over_photos(*log_loss),
                accuracy_over_seeds=over_seeds(*correct),
                log_loss_over_seeds=over_seeds(*log_loss),
            )
        )
    for name in ("accuracy", "log_loss", "accuracy_over_seeds", "log_loss_over_seeds"):
        tested = [comparison for comparison in compared if getattr(comparison, name)]
        corrected = holm([getattr(comparison, name).p for comparison in tested])
        for comparison, p in zip(tested, corrected, strict=True):
            comparison.p[name] = p
    return compared


# ---- the text ----


def say_split(split: str, run: Run) -> list[str]:
    photos = f"{len(run.photos):,} {split} photos"
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
        if lacking and network == ENSEMBLE:
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
        yield f"These runs differ only in {SEED}: what differs between them is the chance of the seed."
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
        "the same recipe gives other answers with another seed."
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


def describe_difference(photos: Difference, seeds: Difference | None) -> str:
    """`+0.0034, 95 % interval +0.0010 to +0.0059 over photos, +0.0021 to +0.0047 over seeds`"""
    text = f"{photos.mean:+.4f}, 95 % interval {photos.low:+.4f} to {photos.high:+.4f} over photos"
    return text + (f", {seeds.low:+.4f} to {seeds.high:+.4f} over seeds" if seeds else "")


def show_p(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"= {p:.2g}"


def about(number: int) -> str:
    """A number with two significant digits."""
    return f"{round(number, 2 - len(str(number))):,}"


# ---- the page ----


def write_page(
    comparisons: dict[str, list[Comparison]], units: list[Recipe], notes: list[str], explanation: list[str], split: str
) -> None:
    """Write the page with the photos that changed sides."""
    compared = [comparison for group in comparisons.values() for comparison in group]
    rows = {row for comparison in compared for side in sides(comparison) for row in side[:SHOWN]}
    run = units[0].runs[0]
    images = read_images(run.photos, rows, split)
    page = render(
        "compare.html.jinja",
        notes=" ".join(notes),
        explanation=" ".join(explanation),
        recipes=[(unit.label, describe_recipe(unit, units[0])) for unit in units],
        comparisons=[
            {
                "network": comparison.network,
                "before": comparison.before.label,
                "after": comparison.after.label,
                "pooled": comparison.pooled,
                "accuracies": [
                    (unit.label, unit.describe(comparison.network)) for unit in (comparison.before, comparison.after)
                ],
                "facts": comparison.facts(),
                "sentence": comparison.sentence(),
                "sides": [[show(row, comparison, images) for row in side[:SHOWN]] for side in sides(comparison)],
                "others": [run.photos["photo"][side[SHOWN:]].tolist() for side in sides(comparison)],
            }
            for comparison in compared
        ],
        has_images=bool(images),
        split=split,
    )
    with atomic_write() as write_to:
        write_to(COMPARE_PAGE).write_text(page, encoding="utf-8")


def sides(comparison: Comparison) -> tuple[list[int], list[int]]:
    """The rows of the photos that the comparison corrects, and of those that it breaks, the largest change first."""
    change = comparison.before.log_loss(comparison.network).mean(axis=0)
    change = change - comparison.after.log_loss(comparison.network).mean(axis=0)
    order = np.argsort(-np.abs(change), kind="stable")
    corrected, broken = ([row for row in order.tolist() if sign * comparison.changes[row] > 0] for sign in (1, -1))
    return corrected, broken


def read_images(photos: pd.DataFrame, rows: Iterable[int], split: str) -> dict[int, str]:
    """The images of the photos at `rows` as data URIs; none unless data/prepared holds the same split."""
    if not (SPLIT_TABLE.exists() and packed_split(split).exists()):
        return {}
    table = read_split_table()
    packed = table.loc[table["split"] == split, "sha256"].tolist()
    if sorted(packed) != photos["sha256"].tolist():
        return {}
    places = {sha256: place for place, sha256 in enumerate(packed)}
    try:
        pixels = read_packed(packed_split(split)).pixels
    except UserError:  # the page does without them
        return {}
    return {row: thumbnail(pixels[places[photos["sha256"][row]]]) for row in rows}


def show(row: int, comparison: Comparison, images: dict[int, str]) -> dict:
    """What the page shows of a photo: its label, its image if there is one, and each run's probabilities."""
    runs = [run for recipe in (comparison.before, comparison.after) for run in recipe.runs]
    answers = {run.name: run.answers[comparison.network] for run in runs}
    return {
        **runs[0].photos.loc[row, ["photo", "label"]],
        "image": images.get(row),
        "probabilities": {
            name: dict(zip(answer.classes, answer.probabilities[row].tolist(), strict=True))
            for name, answer in answers.items()
        },
    }


if __name__ == "__main__":
    run_stage(main)
