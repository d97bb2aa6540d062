"""Pool runs that differ only in their seed, and compare them with the first ones, network by network."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field

from pipeline.core.errors import UserError, list_some
from pipeline.core.params import as_written
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
from pipeline.runs.reading import SEED, Run
from pipeline.scores.scoring import ENSEMBLE

import numpy as np

LABEL_WIDTH = 20
LISTED = 8  # params that differ


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
                return f"{verdict}, but only because of the seed: the recipe is the same."
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
    """Pool the runs that differ only in their seed; a second run with the same seed starts another recipe.

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


def describe_difference(photos: Difference, seeds: Difference | None) -> str:
    """`+0.0034, 95 % interval +0.0010 to +0.0059 over photos, +0.0021 to +0.0047 over seeds`"""
    text = f"{photos.mean:+.4f}, 95 % interval {photos.low:+.4f} to {photos.high:+.4f} over photos"
    return text + (f", {seeds.low:+.4f} to {seeds.high:+.4f} over seeds" if seeds else "")


def show_p(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"= {p:.2g}"


def about(number: int) -> str:
    """A number with two significant digits."""
    return f"{round(number, 2 - len(str(number))):,}"
