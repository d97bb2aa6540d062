"""What `prepare` did with the photos: a table with a row for each, their numbers, and what a user should know."""

from collections import Counter
from collections.abc import Sequence

from pipeline.core import SPLITS
from pipeline.core.class_sizes import describe_few
from pipeline.core.errors import list_some
from pipeline.core.sections.prepare import Prepare
from pipeline.photos.enough import LIMIT, TOO_RARE, describe_counts
from pipeline.photos.source import NAMED, Photo, PhotoSource, describe_skipped
from pipeline.photos.splits import describe_ignored_splits

import pandas as pd


def split_table(photos: list[Photo], classes: Sequence[str]) -> pd.DataFrame:
    """One row per photo: each split in the order of its pixels, then the excluded photos with the reason."""
    order = {split: number for number, split in enumerate(SPLITS)}
    return pd.DataFrame(
        {
            "photo": photo.name,
            "label": "" if photo.label is None else classes[photo.label],
            "split": photo.split,
            "sha256": photo.sha256,
            "excluded": photo.excluded,
            "relabelled_from": photo.relabelled_from,
            "copy_of": photo.copy_of,
            "width": photo.size[0] if photo.size else "",
            "height": photo.size[1] if photo.size else "",
        }
        for photo in sorted(photos, key=lambda photo: (order.get(photo.split, len(SPLITS)), photo.row, photo.name))
    )


def summarise(photos: list[Photo], classes: Sequence[str], source: PhotoSource) -> dict:
    """Count the photos by split and class, relabelled and misnamed ones, copies, exclusions by reason, other files."""
    splits = Counter(photo.split for photo in photos)
    labels = Counter(photo.label for photo in photos if photo.split)
    reasons = Counter(photo.excluded for photo in photos if photo.excluded)
    return {
        "photos": len(photos),
        **{split: splits[split] for split in SPLITS},
        "classes": {name: labels[label] for label, name in enumerate(classes)},
        "relabelled": sum(bool(photo.split and photo.relabelled_from) for photo in photos),
        "misnamed": sum(photo.misnamed for photo in photos),
        "copies": sum(bool(photo.copy_of) for photo in photos),
        "excluded": dict(sorted(reasons.items())),
        "skipped": source.skipped,
    }


def print_notes(
    notes: list[str], photos: list[Photo], classes: tuple[str, ...], left_out: tuple[str, ...], prepare: Prepare
) -> None:
    """Print what may be unexpected.

    These are classes that `auto` merged or took from a folder named like a split (`notes`), classes that are left out,
    file names that contradict their folders, given splits that are not used, and classes with few test photos.
    """
    for note in notes:
        print(note)
    if left_out:
        rare = Counter(photo.class_index for photo in photos if photo.excluded == TOO_RARE)
        named = describe_counts(rare, rare, classes + left_out)
        print(f"note: classes with fewer than {prepare.min_photos_per_class} photos are left out ({LIMIT}): {named}")
    if misnamed := [photo.path for photo in photos if photo.misnamed]:
        examples = ", ".join(misnamed[:NAMED]) + (", ..." if len(misnamed) > NAMED else "")
        print(f"note: {len(misnamed)} photos are named for another class than their folder, which decides: {examples}")
    if ignored := describe_ignored_splits(photos, prepare.split):
        print(ignored)
    tested = Counter(photo.label for photo in photos if photo.split == "test")
    if few := describe_few({name: tested[label] for label, name in enumerate(classes)}):
        print(f"note: {few}; their recall will say little: add photos of them, or put more into test")


def print_summary(summary: dict, seconds: float) -> None:
    held = ", ".join(f"{summary[split]} {split}" for split in SPLITS)
    counted = "".join(f"; {summary[key]} {key}" for key in ("relabelled", "copies") if summary[key])
    excluded = "".join(f"; {count} excluded: {reason}" for reason, count in summary["excluded"].items())
    skipped = f"; skipped: {describe_skipped(summary['skipped'])}" if summary["skipped"] else ""
    rate = summary["photos"] / seconds
    classes = list_some([f"{count} {name}" for name, count in summary["classes"].items()])
    print(f"{summary['photos']} photos: {held} ({classes}){counted}{excluded}{skipped}; {rate:.0f} photos/s")
