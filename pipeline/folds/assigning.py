"""Assign the photos of train and validation to folds, and a fold's parts: what trains, what chooses, what is held out.

A fold is held out once: models that were trained on the others predict it. Training also chooses what it keeps and fits
temperatures, on the next fold, because predictions for photos that decided something would be optimistic.
"""

import hashlib
from collections import Counter

from pipeline.core.errors import UserError, list_some
from pipeline.core.params import MIN_CLASSES
from pipeline.folds import LEAST_FOLDS

import pandas as pd

POOL = ("train", "validation")  # the splits whose photos are assigned; test is left alone
HELD_OUT = "held_out"


def assign_folds(table: pd.DataFrame, folds: int, seed: int) -> pd.DataFrame:
    """The photos of train and validation, from split.csv, in random order, with their `fold` from 1 to `folds`.

    Copies of a photo are in one fold; `copy_of` names the one of them that is scored, and is empty for that one. The
    numbers of each class differ by at most one photo, not counting copies. All of this depends only on the seed and the
    photos' bytes. Also returns `row`, the photo's row in its split. Raises UserError if a class has fewer photos than
    there are folds.
    """
    photos = table[table["split"].isin(POOL)].copy()
    photos["row"] = photos.groupby("split").cumcount()
    photos["order"] = [hashlib.sha256(f"{seed} {sha256}".encode()).hexdigest() for sha256 in photos["sha256"]]
    photos = photos.sort_values(["order", "photo"], ignore_index=True)
    group = photos["copy_of"].where(photos["copy_of"] != "", photos["photo"])
    first = photos["photo"].groupby(group, sort=False).transform("first")
    is_first = photos["photo"] == first
    photos["copy_of"] = first.where(~is_first, "")
    _require_enough(Counter(photos.loc[is_first, "label"]), folds)
    fold_of = _deal(photos[is_first], folds)
    return photos.assign(fold=first.map(fold_of))


def parts_of(photos: pd.DataFrame, fold: int) -> pd.Series:
    """For each photo what it is for while `fold` is held out: `train`, `validation` or HELD_OUT."""
    chooses = fold % photos["fold"].max() + 1
    return photos["fold"].map({fold: HELD_OUT, chooses: "validation"}).fillna("train")


def _deal(photos: pd.DataFrame, folds: int) -> dict[str, int]:
    """The fold of each photo: class by class, in turn, so that folds are equally large, too."""
    in_turn = photos.sort_values("label", kind="stable")["photo"]
    return {photo: place % folds + 1 for place, photo in enumerate(in_turn)}


def _require_enough(photos: Counter[str], folds: int) -> None:
    if few := sorted((count, name) for name, count in photos.items() if count < folds):
        named = list_some(f"{name} ({count})" for count, name in few)
        advice = f"`python tools/folds.py {few[0][0]}`, " if few[0][0] >= LEAST_FOLDS else ""
        can_leave_out = len(photos) - len(few) >= MIN_CLASSES
        raise UserError(
            f"every one of {folds} folds needs a photo of each class, but train and validation have too few of "
            f"{named}, counting copies once; {advice}add photos of them"
            + (", or leave them out with prepare.min_photos_per_class" if can_leave_out else "")
        )
