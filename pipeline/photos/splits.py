"""Assign photos to splits: as the user names them, and the rest by nothing but the seed and the photos' bytes.

Copies of a photo are always in the same split, and validation and test use one of them.
"""

import hashlib
import math
import re
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import PurePosixPath

from pipeline.core import CLASSES, SPLITS
from pipeline.core.errors import UserError
from pipeline.core.params import Params, Prepare, Split
from pipeline.photos.copies import group_copies
from pipeline.photos.decoding import UnreadablePhoto, decode
from pipeline.photos.packing import SplitWriter
from pipeline.photos.source import Photo, PhotoSource, describe_skipped

import numpy as np
from tqdm import tqdm

FILL_ORDER = ("test", "validation", "train")  # if there are too few photos, train gets fewer ...
LEAST_TRAIN_SHARE = 0.99  # ... but at least this share of what was asked for
DECODED_AHEAD = 256  # photos in memory between decoding and writing
NEITHER = "neither cat nor dog by its name or folder"
BOTH = "the same photo stands under both labels"
COPY = "a copy of a photo in validation or test"
UNPAIRED = "no photo of the other class was left to stand beside it"
NOT_NEEDED = "not drawn"
READABLE = frozenset({"", NEITHER, BOTH, COPY, UNPAIRED, NOT_NEEDED})  # any other reason is that it cannot be read
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
LOOKS_LIKE_SPLIT = re.compile(rf"({'|'.join(SPLIT_WORDS)})([^a-z].*)?", re.IGNORECASE)

Group = list[Photo]  # copies of one photo


def require_enough(photos: list[Photo], source: PhotoSource, params: Params) -> None:
    """Raise UserError right away if there are too few photos even if every one of them can be read."""
    split = params.prepare.split
    found = Counter(photo.label for photo in photos if not photo.excluded)
    asked = {name: size for name, size in split if isinstance(size, int)}
    spared = (1 - LEAST_TRAIN_SHARE) * asked.get("train", 0)
    least = max(1, math.ceil((sum(asked.values()) - spared) / len(CLASSES)))
    if min(found[label] for label in range(len(CLASSES))) < least:
        skipped = f"; skipped: {describe_skipped(source.skipped)}" if source.skipped else ""
        advice = "lower it or add photos" if any(found.values()) else "name the folders cats and dogs (docs/photos.md)"
        raise UserError(
            f"{params.prepare.source}: found {found[0]} cats and {found[1]} dogs by folder (cats/) or file name "
            f"(cat.0.jpg){_unlabelled_example(photos)}{skipped}; prepare.split in params.yaml needs "
            f"at least {least} of each; {advice}"
        )


def exclude_unlabelled(photos: list[Photo]) -> None:
    """Exclude photos without a label."""
    for photo in photos:
        if photo.label is None:
            photo.excluded = photo.excluded or NEITHER


def shuffle_groups(photos: list[Photo], seed: int) -> list[Group]:
    """Group copies, exclude those with different labels, and order the groups by the seed and the photos' bytes."""

    def order(photo: Photo) -> tuple[bytes, str]:
        return hashlib.sha256(f"{seed} {photo.sha256}".encode()).digest(), photo.name

    groups = []
    for group in group_copies([photo for photo in photos if not photo.excluded]):
        group.sort(key=order)
        for photo in group[1:]:
            photo.copy_of = group[0].name
        if len({photo.label for photo in group}) == 1:
            groups.append(group)
        else:
            for photo in group:
                photo.excluded = BOTH
    return sorted(groups, key=lambda group: order(group[0]))


class Plan:
    """Which split a group may go to, and how many photos each split takes.

    A split that names a folder or a split of the table takes those photos; the others draw from the photos that no
    split names or, if train is named, from train's. `sizes` has their number of photos, half cats and half dogs; None
    means all of those named.
    """

    def __init__(self, split: Split, groups: list[Group]) -> None:
        self._names = {name: value for name, value in split if isinstance(value, str)}
        for name, value in self._names.items():
            if not any(is_named(photo, value) for group in groups for photo in group):
                raise UserError(
                    f"params.yaml: prepare.split.{name} is {value!r}; expected a number, a share such as 0.2, or the "
                    f"name of a folder or of a split in the table; there are {_listed(groups)}"
                )
        pool = Counter(group[0].label for group in groups if self._claimed_by(group) in (None, "train"))
        photos = len(CLASSES) * min(pool[label] for label in range(len(CLASSES)))
        self.sizes: dict[str, int | None] = {
            name: None if isinstance(value, str) else value if isinstance(value, int) else int(value * photos) // 2 * 2
            for name, value in split
        }

    def choose(self, group: Group, writers: dict[str, SplitWriter]) -> str | None:
        """The first split that may have the group and has room for it; None if there is none."""
        claimed = self._claimed_by(group)
        if claimed in ("test", "validation"):
            return claimed
        drawn = [name for name in FILL_ORDER if self.sizes[name] is not None]
        if "train" in self._names:
            if claimed is None:
                return None
            drawn.append("train")
        label = group[0].label
        return next((name for name in drawn if writers[name].has_room(label, len(self.members(group, name)))), None)

    def members(self, group: Group, split: str) -> Group:
        """The photos of a group that a split uses: all of it in train; else one, of those that it names if it does."""
        if split == "train":
            return group
        named = [photo for photo in group if is_named(photo, self._names[split])] if split in self._names else group
        return named[:1]

    def _claimed_by(self, group: Group) -> str | None:
        for name in FILL_ORDER:
            if name in self._names and any(is_named(photo, self._names[name]) for photo in group):
                return name
        return None


def is_named(photo: Photo, name: str) -> bool:
    """Whether a folder of the photo's path has this name, or the table gives it this split."""
    return name == photo.given if photo.given else name in PurePosixPath(photo.path).parts[:-1]


def fill_splits(
    source: PhotoSource,
    groups: list[Group],
    plan: Plan,
    writers: dict[str, SplitWriter],
    prepare: Prepare,
    pool: ThreadPoolExecutor,
) -> None:
    """Write each group to the first split with room for it.

    A group that fits into no split is not decoded. Room is checked again after decoding, because by then the groups
    decoded before it have been written.
    """

    def read_and_decode(group: Group) -> dict[str, np.ndarray | UnreadablePhoto]:
        decoded: dict[str, np.ndarray | UnreadablePhoto] = {}
        for photo in group:
            if photo.sha256 not in decoded:
                try:
                    decoded[photo.sha256] = decode(source.read(photo), prepare.image_size, prepare.resize)
                except UnreadablePhoto as reason:
                    decoded[photo.sha256] = reason
        return decoded

    wanted = (group for group in groups if plan.choose(group, writers))
    total = sum(map(len, groups))
    if None not in plan.sizes.values():  # the rest is not decoded
        total = min(total, sum(plan.sizes.values()))
    with tqdm(total=total, desc="decoding", unit=" photos", disable=None) as bar:
        while ahead := list(islice(wanted, DECODED_AHEAD)):
            for group, decoded in zip(ahead, pool.map(read_and_decode, ahead), strict=True):
                bar.update(len(group))
                for photo in group:
                    if isinstance(decoded[photo.sha256], UnreadablePhoto):
                        photo.excluded = str(decoded[photo.sha256])
                readable = [photo for photo in group if not photo.excluded]
                if not readable or not (split := plan.choose(readable, writers)):
                    continue
                used = plan.members(readable, split)
                for photo in readable:
                    if photo in used:
                        writers[split].add(photo, decoded[photo.sha256])
                    else:
                        photo.excluded = COPY


def exclude_rest(photos: list[Photo], writers: dict[str, SplitWriter]) -> None:
    """Exclude every remaining photo that is not in a split, with a reason."""
    for writer in writers.values():
        for photo in writer.unpaired():
            photo.excluded = UNPAIRED
    for photo in photos:
        if not photo.split and not photo.excluded:
            photo.excluded = NOT_NEEDED


def require_sizes(photos: list[Photo], plan: Plan, writers: dict[str, SplitWriter], params: Params) -> None:
    """Raise UserError if a split is too small; warn if train is only slightly smaller than asked for.

    Both messages give the counts.
    """
    got = {split: writers[split].rows for split in SPLITS}
    asked = {split: got[split] if plan.sizes[split] is None else plan.sizes[split] for split in SPLITS}
    if got == asked and all(got.values()):
        return
    reasons = Counter(photo.excluded for photo in photos if photo.excluded)
    text = (
        f"{params.prepare.source}: of {len(photos)} photos, "
        + ", ".join(f"{split} got {got[split]} of {asked[split]}" for split in SPLITS)
        + "".join(f"; {count} excluded: {reason}" for reason, count in sorted(reasons.items()))
    )
    evaluation_is_full = all(got[split] == asked[split] for split in ("validation", "test"))
    if not all(got.values()) or not evaluation_is_full or got["train"] < LEAST_TRAIN_SHARE * asked["train"]:
        labels = Counter(photo.label for photo in photos)
        unreadable = any(photo.excluded not in READABLE for photo in photos)
        advice = "fix the excluded photos or lower prepare.split" if unreadable else "lower prepare.split or add photos"
        raise UserError(
            f"too few photos: {text}; found {labels[0]} cats and {labels[1]} dogs by folder (cats/) or file name "
            f"(cat.0.jpg)" + _unlabelled_example(photos) + f"; {advice}"
        )
    print(f"warning: {text}", file=sys.stderr)


def describe_redraw(photos: list[Photo], split: Split) -> str:
    """One line if the source's folders or the table look like splits, but none is named; else an empty text."""
    if any(isinstance(value, str) for _, value in split):
        return ""
    given: dict[str, str] = {}  # the names by what they look like
    for photo in photos:
        if photo.label is not None:
            given |= {SPLIT_WORDS[LOOKS_LIKE_SPLIT.fullmatch(name)[1].lower()]: name for name in _split_names(photo)}
    if len(given) < 2:
        return ""
    test = given.get("test", given.get("validation"))
    kept = {
        "train": given.get("train", 0.8),
        "validation": given["validation"] if len(given) == 3 else 0.2,
        "test": test,
    }
    return (
        f"note: the photos come in splits ({', '.join(sorted(given.values()))}), but prepare.split makes new ones of "
        "all of them; to keep theirs: " + " ".join(f"-S prepare.split.{name}={value}" for name, value in kept.items())
    )


def split_id(photos: list[Photo]) -> str:
    """A fingerprint of the splits, which differs if any of them contains a different photo."""
    rows = sorted(f"{photo.split} {photo.row} {photo.sha256}" for photo in photos if photo.split)
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16]


def _split_names(photo: Photo) -> list[str]:
    names = [photo.given] if photo.given else PurePosixPath(photo.path).parts[:-1]
    return [name for name in names if LOOKS_LIKE_SPLIT.fullmatch(name)]


def _unlabelled_example(photos: list[Photo]) -> str:
    neither = [photo.path for photo in photos if photo.label is None]
    return f", and {len(neither)} that are neither, such as {neither[0]}" if neither else ""


def _listed(groups: list[Group]) -> str:
    """The folders and given splits of the photos, for a message."""
    names = {
        photo.given or part for group in groups for photo in group for part in PurePosixPath(photo.path).parts[:-1]
    }
    return ", ".join(sorted(names)[:12]) or "no folders"
