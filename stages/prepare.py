"""Decode every photo once, draw train, validation and test, and pack each into one file of pixels.

Usage, from the project's root: python stages/prepare.py
Reads the archive or folder that `source` in params.yaml names, and data/corrections.txt; writes data/prepared/ and
metrics/prepare.json.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out

import hashlib
import math
import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice

from catsdogs import CLASSES, SPLITS
from catsdogs.corrections import correct
from catsdogs.errors import UserError
from catsdogs.files import PREPARED, write_json, written_whole
from catsdogs.packing import SplitWriter
from catsdogs.params import Params, Prepare, read_params
from catsdogs.photos import Photo, PhotoSource, UnreadablePhoto, decode, silence_pillow
from catsdogs.process import run_stage

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont
from safetensors import safe_open
from tqdm import tqdm

FILL_ORDER = ("test", "validation", "train")  # where photos are missing, train gives way ...
LEAST_TRAIN_SHARE = 0.99  # ... but only so far
HASHED_AT_ONCE = 64  # photos a task: to hand over a task takes longer than to hash a photo
DECODED_AHEAD = 256  # photos in memory between the threads that decode and the files


def main() -> None:
    start = time.perf_counter()
    params = read_params()
    silence_pillow()
    # Threads, not processes: Pillow and hashlib let go of Python's lock while they decode, scale and hash.
    with PhotoSource(Path(params.source)) as source, ThreadPoolExecutor(os.cpu_count()) as pool:
        photos = source.photos()
        correct(photos)
        check_labels(photos, params)
        hash_photos(source, photos, pool)
        groups = draw_order(photos, params.prepare.seed)
        with written_whole() as write_to:
            files = {split: write_to(PREPARED / f"{split}.safetensors") for split in SPLITS}
            with ExitStack() as stack:
                writers = {
                    split: stack.enter_context(SplitWriter(files[split], split, getattr(params.prepare.split, split)))
                    for split in FILL_ORDER
                }
                pack(source, groups, writers, params.prepare, pool)
                note_rest(photos, writers)
                check_totals(photos, writers, params)
                description = describe(photos, params.prepare)
                for writer in writers.values():
                    writer.finish(description)
            write_split_table(write_to(PREPARED / "split.csv"), photos)
            write_contact_sheet(write_to(PREPARED / "contact_sheet.png"), files)
            summary = summarize(photos)
            write_json(write_to(Path("metrics/prepare.json")), summary)
    held = ", ".join(f"{summary[split]} {split}" for split in SPLITS)
    relabelled = f"; {summary['relabelled']} relabelled" if summary["relabelled"] else ""
    left_out = "".join(f"; {count} left out: {reason}" for reason, count in summary["left_out"].items())
    rate = summary["photos"] / (time.perf_counter() - start)
    print(f"{summary['photos']} photos: {held}{relabelled}{left_out}; {rate:.0f} photos/s")


def check_labels(photos: list[Photo], params: Params) -> None:
    """Raise UserError at once where even without a single bad photo there are too few."""
    split = params.prepare.split
    least = math.ceil((split.validation + split.test + LEAST_TRAIN_SHARE * split.train) / len(CLASSES))
    found = Counter(photo.label for photo in photos if not photo.left_out)
    if min(found[label] for label in range(len(CLASSES))) < least:
        neither = [photo.path for photo in photos if photo.label is None]
        others = f", and {len(neither)} that are neither, such as {neither[0]}" if neither else ""
        raise UserError(
            f"{params.source}: {found[0]} cats and {found[1]} dogs found by the names of files (cat.0.jpg) or folders "
            f"(cats/){others}; prepare.split in params.yaml needs {least} of each: lower it, or bring more photos"
        )


def hash_photos(source: PhotoSource, photos: list[Photo], pool: ThreadPoolExecutor) -> None:
    """Set each photo's hash; leave out those without a label, unreadable, or under both labels."""

    def set_hashes(some: list[Photo]) -> int:
        for photo in some:
            try:
                photo.sha256 = hashlib.sha256(source.read(photo)).hexdigest()
            except UnreadablePhoto as reason:
                photo.left_out = photo.left_out or str(reason)
        return len(some)

    tasks = [photos[first : first + HASHED_AT_ONCE] for first in range(0, len(photos), HASHED_AT_ONCE)]
    with tqdm(total=len(photos), desc="hashing", unit=" photos", disable=None) as bar:
        for done in pool.map(set_hashes, tasks):
            bar.update(done)
    labels_of: dict[str, set[int]] = {}
    for photo in photos:
        if photo.label is None:
            photo.left_out = photo.left_out or "neither cat nor dog by its name or folder"
        if not photo.left_out:
            labels_of.setdefault(photo.sha256, set()).add(photo.label)
    for photo in photos:
        if not photo.left_out and len(labels_of[photo.sha256]) > 1:
            photo.left_out = "the same photo stands under both labels"


def draw_order(photos: list[Photo], seed: int) -> list[list[Photo]]:
    """Groups of byte-for-byte equal photos, in an order that only the seed and the photos' bytes decide."""
    groups: dict[str, list[Photo]] = {}
    for photo in photos:
        if not photo.left_out:
            groups.setdefault(photo.sha256, []).append(photo)
    return [
        groups[sha256]
        for sha256 in sorted(groups, key=lambda sha256: hashlib.sha256(f"{seed} {sha256}".encode()).digest())
    ]


def pack(
    source: PhotoSource,
    groups: list[list[Photo]],
    writers: dict[str, SplitWriter],
    prepare: Prepare,
    pool: ThreadPoolExecutor,
) -> None:
    """Put each group into the first split that has room for all of it, so that no two splits share a photo.

    A group that no split has room for is not decoded; the room is asked for again afterwards, when those decoded
    before it have taken theirs.
    """

    def writer_for(group: list[Photo]) -> SplitWriter | None:
        return next((writers[split] for split in FILL_ORDER if writers[split].room[group[0].label] >= len(group)), None)

    def read_and_decode(group: list[Photo]) -> np.ndarray | UnreadablePhoto:
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
                        photo.left_out = str(decoded)
                    elif writer:
                        writer.add(photo, decoded)
                bar.update(len(group))


def note_rest(photos: list[Photo], writers: dict[str, SplitWriter]) -> None:
    """Give a reason to every photo that has neither a split nor a reason yet."""
    for writer in writers.values():
        for photo in writer.unpaired():
            photo.left_out = "no photo of the other class was left to stand beside it"
    for photo in photos:
        if not photo.split and not photo.left_out:
            photo.left_out = "not drawn"


def check_totals(photos: list[Photo], writers: dict[str, SplitWriter], params: Params) -> None:
    """Refuse splits that are too small, and warn of a train split a little smaller than asked; both with the counts."""
    asked = vars(params.prepare.split)
    got = {split: writers[split].rows for split in SPLITS}
    if got == asked:
        return
    unusable = Counter(photo.left_out for photo in photos if photo.left_out)
    text = (
        f"{params.source}: of {len(photos)} photos, "
        + ", ".join(f"{split} got {got[split]} of {asked[split]}" for split in SPLITS)
        + "".join(f"; {count} left out: {reason}" for reason, count in sorted(unusable.items()))
    )
    evaluation_is_full = all(got[split] == asked[split] for split in ("validation", "test"))
    if not evaluation_is_full or got["train"] < LEAST_TRAIN_SHARE * asked["train"]:
        labels = Counter(photo.label for photo in photos)
        raise UserError(f"too few photos: {text} ({labels[0]} cats and {labels[1]} dogs found); lower prepare.split")
    print(f"warning: {text}", file=sys.stderr)


def describe(photos: list[Photo], prepare: Prepare) -> dict:
    """What every split's file says of itself; `draw` is another wherever any split holds another photo."""
    drawn = sorted(f"{photo.split} {photo.row} {photo.sha256}" for photo in photos if photo.split)
    return {
        "classes": CLASSES,
        "image_size": prepare.image_size,
        "resize": prepare.resize,
        "draw": hashlib.sha256("\n".join(drawn).encode()).hexdigest()[:16],
    }


def write_split_table(path: Path, photos: list[Photo]) -> None:
    """One row a photo: each split's in the order of its pixels, then those that no split holds, and why."""
    place = {split: number for number, split in enumerate(SPLITS)}
    rows = [
        {
            "photo": photo.name,
            "label": "" if photo.label is None else CLASSES[photo.label],
            "split": photo.split,
            "sha256": photo.sha256,
            "left_out": photo.left_out,
            "relabelled_from": photo.relabelled_from,
        }
        for photo in sorted(photos, key=lambda photo: (place.get(photo.split, len(SPLITS)), photo.row, photo.name))
    ]
    pd.DataFrame(rows).to_csv(path, index=False)


def write_contact_sheet(path: Path, files: dict[str, Path]) -> None:
    """Draw the first photos of train, validation and test, cats and dogs in turn, from the packed files."""
    columns, lines = 12, 3
    side, gap, title = 96, 4, 24  # pixels
    step, height = side + gap, title + lines * (side + gap)
    sheet = Image.new("RGB", (columns * step + gap, len(SPLITS) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for top, split in zip(range(0, sheet.height, height), SPLITS, strict=True):
        with safe_open(files[split], framework="numpy") as file:
            photos = file.get_slice("pixels")
            total = photos.get_shape()[0]
            draw.text((gap, top + gap), f"{split}: {total} photos", "black", ImageFont.load_default(16))
            for number, pixels in enumerate(photos[: min(total, columns * lines)]):
                line, column = divmod(number, columns)
                thumbnail = Image.fromarray(pixels).resize((side, side))
                sheet.paste(thumbnail, (gap + column * step, top + title + line * step))
    sheet.save(path, format="PNG")


def summarize(photos: list[Photo]) -> dict:
    """How many photos each split holds, how many of them were relabelled, and how many are left out for what reason."""
    splits = Counter(photo.split for photo in photos)
    reasons = Counter(photo.left_out for photo in photos if photo.left_out)
    return {
        "photos": len(photos),
        **{split: splits[split] for split in SPLITS},
        "relabelled": sum(bool(photo.split and photo.relabelled_from) for photo in photos),
        "left_out": dict(sorted(reasons.items())),
    }


if __name__ == "__main__":
    run_stage(main)
