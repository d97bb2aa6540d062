"""Write packed splits: safetensors files with `pixels` uint8 [N, size, size, 3] and `labels` uint8 [N].

The safetensors library only writes tensors that are in memory, and a split can be larger than that. The format
(https://huggingface.co/docs/safetensors, "Format") is simple enough to write row by row.
"""

import json
import struct
from collections import deque
from pathlib import Path

from pipeline.core import CLASSES
from pipeline.photos.source import Photo

import numpy as np

HEADER_BYTES = 1024  # fixed and padded with spaces, because the number of rows is only known at the end


class SplitWriter:
    """Writes a split of `total` photos in pairs, a cat and a dog, so that it has equal classes wherever it ends.

    A given split has no `total`: it takes what comes, as it comes. `rows` is the number of photos written so far.
    """

    def __init__(self, path: Path, split: str, total: int | None) -> None:
        self.rows = 0
        self._room = None if total is None else [total // len(CLASSES) for _ in CLASSES]
        self._labels = bytearray()
        self._split = split
        self._waiting: list[deque[tuple[Photo, np.ndarray]]] = [deque() for _ in CLASSES]
        self._file = path.open("wb")
        self._file.write(bytes(HEADER_BYTES))

    def __enter__(self) -> "SplitWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, photo: Photo, pixels: np.ndarray) -> None:
        """Add a photo (uint8 [size, size, 3]); in pairs, it is written once there is one of the other class."""
        if self._room is None:
            self._write(photo, pixels)
            return
        self._room[photo.label] -= 1
        self._waiting[photo.label].append((photo, pixels))
        while all(self._waiting):
            for queue in self._waiting:
                self._write(*queue.popleft())

    def has_room(self, label: int, photos: int) -> bool:
        """Whether so many photos of a class can still be added."""
        return self._room is None or self._room[label] >= photos

    def unpaired(self) -> list[Photo]:
        """The photos still waiting for one of the other class."""
        return [photo for queue in self._waiting for photo, _ in queue]

    def finish(self, description: dict) -> None:
        """Write the labels and the header, which includes `description` (with the key `image_size`)."""
        size = description["image_size"]
        pixel_bytes = self.rows * size**2 * 3
        header = {
            # A single entry with a JSON string: safetensors' own writer puts several entries in random order.
            "__metadata__": {"description": json.dumps(description)},
            "pixels": {"dtype": "U8", "shape": [self.rows, size, size, 3], "data_offsets": [0, pixel_bytes]},
            "labels": {"dtype": "U8", "shape": [self.rows], "data_offsets": [pixel_bytes, pixel_bytes + self.rows]},
        }
        text = json.dumps(header).encode().ljust(HEADER_BYTES - 8)
        self._file.write(self._labels)
        self._file.seek(0)
        self._file.write(struct.pack("<Q", len(text)) + text)

    def _write(self, photo: Photo, pixels: np.ndarray) -> None:
        self._file.write(pixels.data)
        self._labels.append(photo.label)
        photo.split, photo.row = self._split, self.rows
        self.rows += 1
