"""Write packed splits: safetensors files with `pixels` uint8 [N, size, size, 3] and `labels` uint16 [N].

The safetensors library only writes tensors that are in memory, and a split can be larger than that. The format
(https://huggingface.co/docs/safetensors, "Format") is simple enough to write row by row.
"""

import json
import math
import os
import struct
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from pipeline.photos.decoding import UnreadablePhoto, decode
from pipeline.photos.source import Photo, PhotoSource
from pipeline.photos.workers import in_batches, results_of

import numpy as np
from tqdm import tqdm

HEADER_BYTES = 1024  # besides the classes; padded with spaces


class SplitOrder:
    """Orders a split's photos so that every prefix has the classes in the proportion of `quotas`.

    `quotas` are numbers of photos per class; without them, photos keep the order in which they are added. `photos` are
    those that have a row so far.
    """

    def __init__(self, split: str, quotas: Sequence[int] | None) -> None:
        self.photos: list[Photo] = []
        self._split = split
        self._quotas = quotas
        self._placed: Counter[int] = Counter()
        self._waiting: dict[int, deque[Photo]] = {label: deque() for label, quota in enumerate(quotas or ()) if quota}

    def add(self, photo: Photo) -> None:
        """Give a photo the next row; with quotas, it waits until the other classes have caught up."""
        if self._quotas is None:
            self._place(photo)
            return
        self._waiting[photo.label].append(photo)
        arrived = min(self._progress(label, len(queue)) for label, queue in self._waiting.items())
        while True:
            label = min(self._waiting, key=lambda label: self._progress(label, 1))
            if self._progress(label, 1) > arrived:
                return
            self._place(self._waiting[label].popleft())

    def waiting(self) -> list[Photo]:
        """The photos that still wait for photos of other classes."""
        return [photo for queue in self._waiting.values() for photo in queue]

    def add_waiting(self) -> None:
        """Give rows to the photos that still wait."""
        for queue in self._waiting.values():
            while queue:
                self._place(queue.popleft())

    def _place(self, photo: Photo) -> None:
        photo.split, photo.row = self._split, len(self.photos)
        self.photos.append(photo)
        self._placed[photo.label] += 1

    def _progress(self, label: int, more: int) -> float:
        """The share of its quota that a class has if `more` of its photos are placed."""
        return (self._placed[label] + more) / self._quotas[label]


def write_splits(
    files: Mapping[str, Path], photos: Mapping[str, Sequence[Photo]], description: dict, source: PhotoSource
) -> bool:
    """Write the packed file of each split, with its photos in the order of their rows.

    The files have `pixels` (uint8 [N, size, size, 3]) and `labels` (uint16 [N]). `description` is stored in each; its
    `image_size` and `resize` say how photos are decoded. Returns whether every photo could be decoded. If not, the
    unreadable ones are excluded, and the files must be written again.
    """
    size, resize = description["image_size"], description["resize"]
    with ExitStack() as stack:
        opened = {split: stack.enter_context(path.open("wb")).fileno() for split, path in files.items()}
        starts = {split: _write_frame(file, photos[split], description) for split, file in opened.items()}

        def write_batch(batch: Sequence[Photo]) -> dict[int, str]:
            unreadable = {}
            for place, photo in enumerate(batch):
                try:
                    pixels = decode(source.read(photo), size, resize)
                except UnreadablePhoto as reason:
                    unreadable[place] = str(reason)
                else:
                    start = starts[photo.split] + photo.row * pixels.nbytes
                    _write_at(opened[photo.split], start, pixels)
            return unreadable

        everything = [photo for split in opened for photo in photos[split]]
        batches = in_batches(everything)
        is_complete = True
        with (
            results_of(write_batch, batches) as results,
            tqdm(total=len(everything), desc="decoding", unit=" photos", disable=None) as bar,
        ):
            for batch, unreadable in zip(batches, results, strict=True):
                for place, reason in unreadable.items():
                    batch[place].readable, batch[place].excluded = False, reason
                    is_complete = False
                bar.update(len(batch))
    return is_complete


def _write_frame(file: int, photos: Sequence[Photo], description: dict) -> int:
    """Write the header and the labels, before and after the pixels; return the position of the first pixel."""
    size, classes = description["image_size"], description["classes"]
    labels = np.array([photo.label for photo in photos], dtype="<u2").tobytes()
    pixel_bytes = len(photos) * size**2 * 3
    header = {
        # A single entry with a JSON string: safetensors' own writer puts several entries in random order.
        "__metadata__": {"description": json.dumps(description)},
        "pixels": {"dtype": "U8", "shape": [len(photos), size, size, 3], "data_offsets": [0, pixel_bytes]},
        "labels": {"dtype": "U16", "shape": [len(photos)], "data_offsets": [pixel_bytes, pixel_bytes + len(labels)]},
    }
    start = HEADER_BYTES + 8 * math.ceil(len(json.dumps(json.dumps(classes))) / 8)
    text = json.dumps(header).encode().ljust(start - 8)
    _write_at(file, 0, struct.pack("<Q", len(text)) + text)
    _write_at(file, start + pixel_bytes, labels)
    return start


def _write_at(file: int, position: int, content: bytes | np.ndarray) -> None:
    """Write at a position of an open file, given by its descriptor, so that processes can share it."""
    rest = memoryview(content).cast("B")
    while rest:
        written = os.pwrite(file, rest, position)
        position, rest = position + written, rest[written:]
