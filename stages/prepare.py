"""Decode every photo once, split them into train, validation and test, and pack each split into one file of pixels.

Reads the archive or folder set as prepare.source, the table set as prepare.labels, and data/corrections.txt; writes
data/prepared/ and metrics/prepare.json.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

import time

from pipeline.core import SPLITS
from pipeline.core.command_line import read_arguments
from pipeline.core.files import atomic_write, write_json
from pipeline.core.params import AUTO, Classes, Section
from pipeline.core.paths import CONTACT_SHEET, PREPARE_SUMMARY, SPLIT_TABLE, packed_split
from pipeline.core.process import run_stage
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


def main() -> None:
    params = read_inputs()

    # Slow imports, so not before: mistakes in the inputs should be reported at once.
    from pipeline.core.packed import describe
    from pipeline.photos.contact_sheet import write_contact_sheet
    from pipeline.photos.corrections import correct
    from pipeline.photos.decoding import silence_pillow
    from pipeline.photos.enough import leave_out_rare, require_enough, require_sizes
    from pipeline.photos.hashing import hash_photos
    from pipeline.photos.labels import label_photos
    from pipeline.photos.packing import write_splits
    from pipeline.photos.source import PhotoSource
    from pipeline.photos.splits import Plan, exclude_unlabelled, fill_splits, shuffle_groups, split_id
    from pipeline.photos.summary import print_notes, print_summary, split_table, summarise
    from pipeline.photos.table import apply_table

    start = time.perf_counter()
    prepare = params.prepare
    silence_pillow()
    with PhotoSource(Path(prepare.source)) as source:
        for note in source.notes:
            print(f"note: {note}")
        photos = source.photos()
        apply_table(photos, Path(prepare.labels))
        is_listed = params.classes != AUTO
        classes, notes = label_photos(photos, params.classes, prepare.split)
        correct(photos, classes)
        require_enough(photos, classes, source, prepare)
        hash_photos(source, photos)
        exclude_unlabelled(photos)
        groups = shuffle_groups(photos, prepare.seed)
        with atomic_write() as write_to:
            files = {split: write_to(packed_split(split)) for split in SPLITS}
            is_complete, left_out = False, tuple[str, ...]()
            while not is_complete:  # a photo that could be hashed but not decoded is replaced by another one
                groups, classes, rare = leave_out_rare(photos, groups, classes, is_listed, prepare)
                left_out = rare + left_out  # their labels come after those of the classes
                splits = fill_splits(photos, groups, Plan(prepare.split, photos, groups, classes))
                require_sizes(photos, groups, classes, is_listed, prepare)
                description = describe(classes, prepare.image_size, prepare.resize, split_id(photos))
                is_complete = write_splits(files, splits, description, source)
            split_table(photos, classes + left_out).to_csv(write_to(SPLIT_TABLE), index=False)
            write_contact_sheet(write_to(CONTACT_SHEET), files)
            summary = summarise(photos, classes, source)
            write_json(write_to(PREPARE_SUMMARY), summary)
    print_notes(notes, photos, classes, left_out, prepare)
    print_summary(summary, seconds=time.perf_counter() - start)


if __name__ == "__main__":
    run_stage(main)
