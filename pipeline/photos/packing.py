"""Write packed splits: safetensors files with `pixels` uint8 [N, size, size, 3] and `labels` uint16 [N].

The safetensors library only writes tensors that are in memory, and a split can be larger than that. The format
(https://huggingface.co/docs/safetensors, "Format") is simple enough to write row by row.
"""

import json
import math
import struct
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path

from pipeline.photos.source import Photo

import numpy as np

HEADER_BYTES = 1024  # besides the classes; padded with spaces, because the number of rows is only known at the end


class SplitWriter:
    """Writes a split so that any first part of it has the classes in the proportion of `quotas`, photos per class.

    `classes` are their names. Without `quotas` photos are written as they come. `rows` is the number of photos written
    so far.
    """

    def __init__(self, path: Path, split: str, quotas: Sequence[int] | None, classes: Sequence[str]) -> None:
        self.rows = 0
        self._split = split
        self._quotas = quotas
        self._written: Counter[int] = Counter()
        self._waiting: dict[int, deque[tuple[Photo, np.ndarray]]] = {
            label: deque() for label, quota in enumerate(quotas or ()) if quota
        }
        self._labels: list[int] = []
        self._header_bytes = HEADER_BYTES + 8 * math.ceil(len(json.dumps(json.dumps(classes))) / 8)
        self._file = path.open("wb")
        self._file.write(bytes(self._header_bytes))

    def __enter__(self) -> "SplitWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, photo: Photo, pixels: np.ndarray) -> None:
        """Add a photo (uint8 [size, size, 3]); with quotas, it is written once the other classes have come as far."""
        if self._quotas is None:
            self._write(photo, pixels)
            return
        self._waiting[photo.label].append((photo, pixels))
        arrived = min(self._progress(label, len(queue)) for label, queue in self._waiting.items())
        while True:
            label = min(self._waiting, key=lambda label: self._progress(label, 1))
            if self._progress(label, 1) > arrived:
                return
            self._write(*self._waiting[label].popleft())

    def waiting(self) -> list[Photo]:
        """The photos that still wait for one of another class."""
        return [photo for queue in self._waiting.values() for photo, _ in queue]

    def write_waiting(self) -> None:
        """Write the photos that still wait."""
        for queue in self._waiting.values():
            while queue:
                self._write(*queue.popleft())

    def finish(self, description: dict) -> None:
        """Write the labels and the header, which includes `description` (with the key `image_size`)."""
        size = description["image_size"]
        pixel_bytes = self.rows * size**2 * 3
        labels = np.array(self._labels, dtype="<u2").tobytes()
        header = {
            # A single entry with a JSON string: safetensors' own writer puts several entries in random order.
            "__metadata__": {"description": json.dumps(description)},
            "pixels": {"dtype": "U8", "shape": [self.rows, size, size, 3], "data_offsets": [0, pixel_bytes]},
            "labels": {"dtype": "U16", "shape": [self.rows], "data_offsets": [pixel_bytes, pixel_bytes + len(labels)]},
        }
        text = json.dumps(header).encode().ljust(self._header_bytes - 8)
        self._file.write(labels)
        self._file.seek(0)
        self._file.write(struct.pack("<Q", len(text)) + text)

    def _write(self, photo: Photo, pixels: np.ndarray) -> None:
        self._file.write(pixels.data)
        self._labels.append(photo.label)
        photo.split, photo.row = self._split, self.rows
        self.rows += 1
        self._written[photo.label] += 1

    def _progress(self, label: int, more: int) -> float:
        """The share of its quota that a class has if `more` of its photos are written."""
        return (self._written[label] + more) / self._quotas[label]
