"""Decode every photo once, split them into train, validation and test, and pack each split into one file of pixels.

Reads the archive or folder set as prepare.source, the table set as prepare.labels, and data/corrections.txt; writes
data/prepared/ and metrics/prepare.json.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

import time
from collections import Counter
from collections.abc import Sequence

from pipeline.core import SPLITS
from pipeline.core.command_line import read_arguments
from pipeline.core.errors import list_some
from pipeline.core.files import atomic_write, write_json
from pipeline.core.params import Classes, Section
from pipeline.core.paths import CONTACT_SHEET, PREPARE_SUMMARY, SPLIT_TABLE, packed_split
from pipeline.core.process import check_first, run_stage
from pipeline.core.read_params import read_params
from pipeline.core.sections.prepare import Prepare


class Params(Section):
    """What this stage reads of params.yaml."""

    classes: Classes
    prepare: Prepare


def read_inputs() -> Params:
    """The params. Raises UserError if they are wrong."""
    read_arguments(__doc__)
    return read_params(Params)


if __name__ == "__main__":
    check_first(read_inputs)

from pipeline.core.class_sizes import describe_few
from pipeline.core.packed import describe
from pipeline.photos.contact_sheet import write_contact_sheet
from pipeline.photos.corrections import correct
from pipeline.photos.decoding import silence_pillow
from pipeline.photos.hashing import hash_photos
from pipeline.photos.labels import label_photos
from pipeline.photos.packing import write_splits
from pipeline.photos.source import NAMED, Photo, PhotoSource, describe_skipped
from pipeline.photos.splits import (
    Plan,
    describe_ignored_splits,
    exclude_unlabelled,
    fill_splits,
    require_enough,
    require_sizes,
    shuffle_groups,
    split_id,
)
from pipeline.photos.table import apply_table

import pandas as pd


def main() -> None:
    start = time.perf_counter()
    params = read_inputs()
    prepare = params.prepare
    silence_pillow()
    with PhotoSource(Path(prepare.source)) as source:
        for note in source.notes:
            print(f"note: {note}")
        photos = source.photos()
        apply_table(photos, Path(prepare.labels))
        classes, notes = label_photos(photos, params.classes, prepare.split)
        correct(photos, classes)
        require_enough(photos, classes, source, prepare)
        hash_photos(source, photos)
        exclude_unlabelled(photos)
        groups = shuffle_groups(photos, prepare.seed)
        with atomic_write() as write_to:
            files = {split: write_to(packed_split(split)) for split in SPLITS}
            is_complete = False
            while not is_complete:  # a photo that could be hashed but not decoded is replaced by another one
                splits = fill_splits(photos, groups, Plan(prepare.split, photos, groups, classes))
                require_sizes(photos, classes, prepare)
                description = describe(classes, prepare.image_size, prepare.resize, split_id(photos))
                is_complete = write_splits(files, splits, description, source)
            split_table(photos, classes).to_csv(write_to(SPLIT_TABLE), index=False)
            write_contact_sheet(write_to(CONTACT_SHEET), files)
            summary = summarize(photos, classes, source)
            write_json(write_to(PREPARE_SUMMARY), summary)
    print_notes(notes, photos, classes, prepare)
    print_summary(summary, seconds=time.perf_counter() - start)


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
        }
        for photo in sorted(photos, key=lambda photo: (order.get(photo.split, len(SPLITS)), photo.row, photo.name))
    )


def summarize(photos: list[Photo], classes: Sequence[str], source: PhotoSource) -> dict:
    """Count the photos by split and class, what was noticed, the excluded ones by reason, and other files."""
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


def print_notes(notes: list[str], photos: list[Photo], classes: Sequence[str], prepare: Prepare) -> None:
    """Print what may be unexpected.

    These are classes that `auto` merged or took from a folder named like a split (`notes`), file names that contradict
    their folders, given splits that are not used, and classes with few test photos.
    """
    for note in notes:
        print(note)
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


if __name__ == "__main__":
    run_stage(main)
