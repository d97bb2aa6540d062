"""A comparison as an HTML page, with the photos that changed sides."""

from collections.abc import Iterable

from pipeline.core.errors import UserError
from pipeline.core.packed import read_packed
from pipeline.core.paths import SPLIT_TABLE, packed_split
from pipeline.core.split_table import read_split_table
from pipeline.folds.assigning import POOL
from pipeline.pages.rendering import render, thumbnail
from pipeline.runs.comparing import Comparison, Recipe
from pipeline.runs.comparison_text import describe_recipe
from pipeline.runs.reading_folds import FOLDED

import numpy as np
import pandas as pd

SHOWN = 60  # photos with images, of those that one comparison corrects or breaks


def render_page(
    comparisons: dict[str, list[Comparison]], units: list[Recipe], notes: list[str], explanation: list[str], split: str
) -> str:
    """The page with the photos that changed sides."""
    compared = [comparison for group in comparisons.values() for comparison in group]
    rows = {row for comparison in compared for side in sides(comparison) for row in side[:SHOWN]}
    run = units[0].runs[0]
    images = read_images(run.photos, rows, split)
    return render(
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


def sides(comparison: Comparison) -> tuple[list[int], list[int]]:
    """The rows of the photos that the comparison corrects, and of those that it breaks, the largest change first."""
    change = comparison.before.log_loss(comparison.network).mean(axis=0)
    change = change - comparison.after.log_loss(comparison.network).mean(axis=0)
    order = np.argsort(-np.abs(change), kind="stable")
    corrected, broken = ([row for row in order.tolist() if sign * comparison.changes[row] > 0] for sign in (1, -1))
    return corrected, broken


def read_images(photos: pd.DataFrame, rows: Iterable[int], split: str) -> dict[int, str]:
    """The images of the photos at `rows` as data URIs; none unless data/prepared holds these photos in `split`."""
    splits = POOL if split == FOLDED else (split,)
    if not all(path.exists() for path in (SPLIT_TABLE, *map(packed_split, splits))):
        return {}
    table = read_split_table()
    places = {
        sha256: (name, place)
        for name in splits
        for place, sha256 in enumerate(table.loc[table["split"] == name, "sha256"])
    }
    if not places.keys() >= {*photos["sha256"]}:
        return {}
    try:
        pixels = {name: read_packed(packed_split(name)).pixels for name in splits}
    except UserError:  # the page does without them
        return {}
    found = {row: places[photos["sha256"][row]] for row in rows}
    return {row: thumbnail(pixels[name][place]) for row, (name, place) in found.items()}


def show(row: int, comparison: Comparison, images: dict[int, str]) -> dict:
    """What the page shows of a photo: its label, its image if there is one, and each run's probabilities."""
    runs = [run for recipe in (comparison.before, comparison.after) for run in recipe.runs]
    answers = {run.name: run.answers[comparison.network] for run in runs}
    return {
        **runs[0].photos[["photo", "label"]].loc[row],
        "image": images.get(row),
        "probabilities": {
            name: dict(zip(answer.classes, answer.probabilities[row].tolist(), strict=True))
            for name, answer in answers.items()
        },
    }
