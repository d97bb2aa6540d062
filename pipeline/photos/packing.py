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
    """Writes photos in pairs, a cat and a dog, so that a split has equal classes wherever it ends.

    `room[label]` is the number of photos of that class that can still be added, `rows` the number written so far.
    """

    def __init__(self, path: Path, split: str, total: int) -> None:
        self.rows = 0
        self.room = [total // len(CLASSES) for _ in CLASSES]
        self._split = split
        self._waiting: list[deque[tuple[Photo, np.ndarray]]] = [deque() for _ in CLASSES]
        self._file = path.open("wb")
        self._file.write(bytes(HEADER_BYTES))

    def __enter__(self) -> "SplitWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, photo: Photo, pixels: np.ndarray) -> None:
        """Add a photo (uint8 [size, size, 3]); it is written once there is one of the other class to pair it with."""
        self.room[photo.label] -= 1
        self._waiting[photo.label].append((photo, pixels))
        while all(self._waiting):
            for queue in self._waiting:
                photo, pixels = queue.popleft()
                self._file.write(pixels.data)
                photo.split, photo.row = self._split, self.rows
                self.rows += 1

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
        self._file.write(bytes(range(len(CLASSES))) * (self.rows // len(CLASSES)))  # labels: 0, 1, 0, 1, ...
        self._file.seek(0)
        self._file.write(struct.pack("<Q", len(text)) + text)
