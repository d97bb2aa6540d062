"""Whether there are enough photos: in all, in each split, and of each class."""

import math
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from pipeline.core import SPLITS
from pipeline.core.errors import UserError, list_some
from pipeline.core.params import AUTO, MIN_CLASSES
from pipeline.core.sections.prepare import Prepare
from pipeline.photos.source import Photo, PhotoSource, describe_skipped
from pipeline.photos.splits import MIN_TRAIN_SHARE, NO_ROOM, Group

LIMIT = "prepare.min_photos_per_class"
TOO_RARE = f"its class has fewer photos than {LIMIT}"
MOST_NAMED = 12  # classes in a message


def require_enough(photos: list[Photo], classes: Sequence[str], source: PhotoSource, prepare: Prepare) -> None:
    """Raise UserError right away if there are too few photos even if every one of them can be read."""
    found = Counter(photo.label for photo in photos if photo.label is not None and not photo.excluded)
    asked = {name: size for name, size in prepare.split if isinstance(size, int)}
    spared = (1 - MIN_TRAIN_SHARE) * asked.get("train", 0)
    least = math.ceil(sum(asked.values()) - spared)
    missing = [name for label, name in enumerate(classes) if not found[label]]
    if not missing and found.total() >= least:
        return
    skipped = f"; skipped: {describe_skipped(source.skipped)}" if source.skipped else ""
    if not found:
        advice = (
            f"name the folders {list_some(classes)}, or set classes in params.yaml to your own or to {AUTO} "
            "(docs/photos.md)"
        )
    elif missing:
        advice = f"add photos of {list_some(missing)}, or change classes in params.yaml"
    else:
        total = sum(asked.values())
        fewer = f", of which train may have {total - least} fewer" if total > least else ""
        advice = f"prepare.split in params.yaml needs {total}{fewer}; lower it, set shares such as 0.2, or add photos"
    raise UserError(f"{prepare.source}: found {describe_found(photos, classes)}{skipped}; {advice}")


def leave_out_rare(
    photos: list[Photo], groups: list[Group], classes: tuple[str, ...], is_listed: bool, prepare: Prepare
) -> tuple[list[Group], tuple[str, ...], tuple[str, ...]]:
    """Exclude the photos of classes with fewer than prepare.min_photos_per_class readable photos; copies count as one.

    Returns the groups and the classes that remain, and the classes that are left out. Each label becomes a position in
    the classes that remain, followed by those left out. Raises UserError if fewer than two remain. If the user has
    listed the classes, leaving one out is an error, too: a model without it would be a surprise.
    """
    least, usable = prepare.min_photos_per_class or 0, count_usable(groups)
    kept = [label for label in range(len(classes)) if usable[label] >= least]
    rare = [label for label in range(len(classes)) if usable[label] < least]
    if not rare:
        return groups, classes, ()
    too_rare = f"{LIMIT} is {least}, but there are fewer of {describe_counts(rare, usable, classes)}"
    if len(kept) < MIN_CLASSES:
        raise UserError(f"{too_rare}; at least {MIN_CLASSES} classes must remain; lower it, or add photos")
    if is_listed:
        raise UserError(f"{too_rare}; remove these from classes in params.yaml, add photos, or lower {LIMIT}")
    places = {label: place for place, label in enumerate(kept + rare)}
    for photo in photos:
        if photo.label is not None:
            if photo.excluded in NO_ROOM | {""} and places[photo.label] >= len(kept):
                photo.excluded = TOO_RARE
            photo.label = places.get(photo.label, photo.label)
        if photo.found_label is not None:
            photo.found_label = places.get(photo.found_label, photo.found_label)
    groups = [group for group in groups if group[0].class_index < len(kept)]
    return groups, tuple(classes[label] for label in kept), tuple(classes[label] for label in rare)


def count_usable(groups: list[Group]) -> Counter[int]:
    """The number of groups of copies of each label that have a readable photo."""
    return Counter(group[0].class_index for group in groups if any(photo.readable for photo in group))


def require_sizes(
    photos: list[Photo], groups: list[Group], classes: Sequence[str], is_listed: bool, prepare: Prepare
) -> None:
    """Raise UserError if a split is too small or lacks a class; warn if train is slightly smaller than asked for.

    All messages give the counts.
    """
    got = {split: Counter(photo.label for photo in photos if photo.split == split) for split in SPLITS}
    asked = {split: size for split, size in prepare.split if isinstance(size, int)}
    short = {split: got[split].total() for split in asked if got[split].total() < asked[split]}
    lacking = {split: [label for label in range(len(classes)) if not got[split][label]] for split in SPLITS}
    if not short and not any(lacking.values()):
        return
    reasons = Counter(photo.excluded for photo in photos if photo.excluded)
    excluded = "".join(f"; {count} excluded: {reason}" for reason, count in sorted(reasons.items()))
    text = f"{prepare.source}: of {len(photos)} photos, " + ", ".join(
        f"{split} got {got[split].total()}" + (f" of {asked[split]}" if split in asked else "") for split in SPLITS
    )
    found = f"found {describe_found(photos, classes)}"
    slightly = short.keys() <= {"train"} and short.get("train", 0) >= MIN_TRAIN_SHARE * asked.get("train", 0)
    if not slightly:
        unreadable = not all(photo.readable for photo in photos)
        advice = "fix the excluded photos or lower" if unreadable else "add photos or lower"
        raise UserError(f"too few photos: {text}{excluded}; {found}; {advice} prepare.split")
    if any(lacking.values()):
        raise UserError(f"{prepare.source}: {describe_lacking(lacking, groups, classes, is_listed)}{excluded}")
    print(f"warning: {text}{excluded}", file=sys.stderr)


def describe_lacking(
    lacking: Mapping[str, Sequence[int]], groups: list[Group], classes: Sequence[str], is_listed: bool
) -> str:
    """Name the classes that a split lacks, with the numbers of their photos (copies count as one); say what to do."""
    usable = count_usable(groups)
    without = {label: [split for split in SPLITS if label in lacking[split]] for label in range(len(classes))}
    rare = sorted((label for label, splits in without.items() if splits), key=lambda label: usable[label])
    named = list_some(
        (f"{classes[label]} ({usable[label]}, none in {' and '.join(without[label])})" for label in rare), MOST_NAMED
    )
    advice = "add photos of them or change prepare.split"
    enough = usable[rare[-1]] + 1
    others = [usable[label] for label, splits in without.items() if not splits]
    if len(others) >= MIN_CLASSES and is_listed:
        advice = "add photos of them, change prepare.split, or remove them from classes"
    elif len(others) >= MIN_CLASSES and min(others) >= enough:
        advice = f"add photos of them, change prepare.split, or leave them out with {LIMIT}={enough}"
    return f"every split needs photos of each class, but there are too few of {named}; {advice}"


def describe_counts(labels: Iterable[int], counts: Mapping[int, int], classes: Sequence[str]) -> str:
    """`tulip (1), roses (2)`, for messages, the rarest first."""
    ordered = sorted(labels, key=lambda label: counts[label])
    return list_some((f"{classes[label]} ({counts[label]})" for label in ordered), MOST_NAMED)


def describe_found(photos: list[Photo], classes: Sequence[str]) -> str:
    """`12 cat, 14 dog, and 3 photos without a class, such as x.jpg`, for messages."""
    found = Counter(photo.label for photo in photos if photo.label is not None)
    unlabelled = [photo.path for photo in photos if photo.label is None]
    text = list_some([f"{found[label]} {name}" for label, name in enumerate(classes)])
    return text + (f", and {len(unlabelled)} photos without a class, such as {unlabelled[0]}" if unlabelled else "")
