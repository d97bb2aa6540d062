"""Assign photos to splits. Only the seed and the photos' bytes decide, and equal photos are in the same split."""

import hashlib
import math
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from pipeline.core import CLASSES, SPLITS
from pipeline.core.errors import UserError
from pipeline.core.params import Params, Prepare
from pipeline.photos.decoding import UnreadablePhoto, decode
from pipeline.photos.packing import SplitWriter
from pipeline.photos.source import Photo, PhotoSource

import numpy as np
from tqdm import tqdm

FILL_ORDER = ("test", "validation", "train")  # if there are too few photos, train gets fewer ...
LEAST_TRAIN_SHARE = 0.99  # ... but at least this share of what was asked for
DECODED_AHEAD = 256  # photos in memory between decoding and writing

Group = list[Photo]  # photos that are byte-for-byte equal


def require_enough(photos: list[Photo], params: Params) -> None:
    """Raise UserError right away if there are too few photos even if every one of them can be read."""
    split = params.prepare.split
    least = math.ceil((split.validation + split.test + LEAST_TRAIN_SHARE * split.train) / len(CLASSES))
    found = Counter(photo.label for photo in photos if not photo.excluded)
    if min(found[label] for label in range(len(CLASSES))) < least:
        neither = [photo.path for photo in photos if photo.label is None]
        others = f", and {len(neither)} that are neither, such as {neither[0]}" if neither else ""
        raise UserError(
            f"{params.prepare.source}: found {found[0]} cats and {found[1]} dogs by file name (cat.0.jpg) or folder "
            f"(cats/){others}; prepare.split in params.yaml needs {least} of each: lower it or add photos"
        )


def exclude_unlabelled(photos: list[Photo]) -> None:
    """Exclude photos without a label, and equal photos with different labels."""
    labels_of: dict[str, set[int]] = {}
    for photo in photos:
        if photo.label is None:
            photo.excluded = photo.excluded or "neither cat nor dog by its name or folder"
        if not photo.excluded:
            labels_of.setdefault(photo.sha256, set()).add(photo.label)
    for photo in photos:
        if not photo.excluded and len(labels_of[photo.sha256]) > 1:
            photo.excluded = "the same photo stands under both labels"


def shuffle_groups(photos: list[Photo], seed: int) -> list[Group]:
    """Group equal photos, and order the groups by nothing but the seed and the photos' bytes."""
    groups: dict[str, Group] = {}
    for photo in photos:
        if not photo.excluded:
            groups.setdefault(photo.sha256, []).append(photo)
    return [
        groups[sha256]
        for sha256 in sorted(groups, key=lambda sha256: hashlib.sha256(f"{seed} {sha256}".encode()).digest())
    ]


def fill_splits(
    source: PhotoSource,
    groups: list[Group],
    writers: dict[str, SplitWriter],
    prepare: Prepare,
    pool: ThreadPoolExecutor,
) -> None:
    """Write each group to the first split with room for all of it, so that no two splits share a photo.

    A group that fits into no split is not decoded. Room is checked again after decoding, because by then the groups
    decoded before it have been written.
    """

    def writer_for(group: Group) -> SplitWriter | None:
        return next((writers[split] for split in FILL_ORDER if writers[split].room[group[0].label] >= len(group)), None)

    def read_and_decode(group: Group) -> np.ndarray | UnreadablePhoto:
        try:
            return decode(source.read(group[0]), prepare.image_size, prepare.resize)
        except UnreadablePhoto as reason:
            return reason

    wanted = (group for group in groups if writer_for(group))
    total = min(sum(sum(writer.room) for writer in writers.values()), sum(map(len, groups)))
    with tqdm(total=total, desc="decoding", unit=" photos", disable=None) as bar:
        while ahead := list(islice(wanted, DECODED_AHEAD)):
            for group, decoded in zip(ahead, pool.map(read_and_decode, ahead), strict=True):
                writer = writer_for(group)
                for photo in group:
                    if isinstance(decoded, UnreadablePhoto):
                        photo.excluded = str(decoded)
                    elif writer:
                        writer.add(photo, decoded)
                bar.update(len(group))


def exclude_rest(photos: list[Photo], writers: dict[str, SplitWriter]) -> None:
    """Exclude every remaining photo that is not in a split, with a reason."""
    for writer in writers.values():
        for photo in writer.unpaired():
            photo.excluded = "no photo of the other class was left to stand beside it"
    for photo in photos:
        if not photo.split and not photo.excluded:
            photo.excluded = "not drawn"


def require_sizes(photos: list[Photo], writers: dict[str, SplitWriter], params: Params) -> None:
    """Raise UserError if a split is too small; warn if train is only slightly smaller than asked for.

    Both messages give the counts.
    """
    asked = params.prepare.split.model_dump()
    got = {split: writers[split].rows for split in SPLITS}
    if got == asked:
        return
    reasons = Counter(photo.excluded for photo in photos if photo.excluded)
    text = (
        f"{params.prepare.source}: of {len(photos)} photos, "
        + ", ".join(f"{split} got {got[split]} of {asked[split]}" for split in SPLITS)
        + "".join(f"; {count} excluded: {reason}" for reason, count in sorted(reasons.items()))
    )
    evaluation_is_full = all(got[split] == asked[split] for split in ("validation", "test"))
    if not evaluation_is_full or got["train"] < LEAST_TRAIN_SHARE * asked["train"]:
        labels = Counter(photo.label for photo in photos)
        raise UserError(f"too few photos: {text} ({labels[0]} cats and {labels[1]} dogs found); lower prepare.split")
    print(f"warning: {text}", file=sys.stderr)


def split_id(photos: list[Photo]) -> str:
    """A fingerprint of the splits, which differs if any of them contains a different photo."""
    rows = sorted(f"{photo.split} {photo.row} {photo.sha256}" for photo in photos if photo.split)
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16]
