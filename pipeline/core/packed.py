"""Packed splits: the photos of train, validation or test in one file, as `prepare` writes it and all others read it.

It is a safetensors file with `pixels` uint8 [N, size, size, 3], `labels` uint16 [N], and in its metadata a description
of the photos. The safetensors library can read such a file, but cannot write it photo by photo. It also maps files as
writable, for which Linux requires as much memory as the file is large, and a split can be larger than memory. The
format (https://huggingface.co/docs/safetensors#format) is simple: the header's length, the header as JSON, the tensors.
"""

import json
import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError, first_line
from pipeline.core.files import require_file

import numpy as np

DTYPES = {"pixels": ("U8", np.uint8), "labels": ("U16", np.dtype("<u2"))}  # safetensors' name, and NumPy's
HEADER_BYTES = 1024  # besides the classes; padded with spaces

# ---- the description of the photos, which models that were trained on them have, too ----


def describe(classes: Sequence[str], image_size: int, resize: str, split_id: str) -> dict:
    """The description of a split's photos. `split_id` is a fingerprint of which photos are in which split."""
    return {"classes": classes, "image_size": image_size, "resize": resize, "split_id": split_id}


DESCRIBED = tuple(describe((), 0, "", ""))


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """The first of classes, image_size, resize and split in which two descriptions differ; None if they are the same.

    Both may have other keys in addition, as a model's description has.
    """
    key = next((key for key in DESCRIBED if one.get(key) != other.get(key)), None)
    return key and key.removesuffix("_id")


# ---- the file ----


@dataclass(frozen=True)
class Packed:
    """A packed split. The pixels are mapped from the file: only those that are used are read. They are read-only."""

    pixels: np.memmap  # uint8 [N, size, size, 3]
    labels: np.ndarray  # uint16 [N]
    description: dict


def read_packed(path: Path) -> Packed:
    """Open a packed split. Raises UserError if it does not exist or cannot be read."""
    try:
        with require_file(path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, size)))
        start = 8 + length
        if size != (expected := start + max(header[name]["data_offsets"][1] for name in DTYPES)):
            raise ValueError(f"it has {size} bytes; expected {expected}")
        pixels, labels = (
            np.memmap(path, dtype, "r", start + header[name]["data_offsets"][0], tuple(header[name]["shape"]))
            for name, (_, dtype) in DTYPES.items()
        )
        description = json.loads(header["__metadata__"]["description"])
    except (OSError, struct.error, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}); run `dvc repro prepare` to create it") from None
    return Packed(pixels, np.array(labels), description)


@contextmanager
def packed_writer(path: Path, labels: Sequence[int], description: dict) -> Iterator[Callable[[int, np.ndarray], None]]:
    """Create a packed split, and yield a function that writes the pixels of one row, uint8 [size, size, 3].

    `labels` are those of all rows. Rows may be written in any order, and by forked processes.
    """
    size = description["image_size"]
    shapes = {"pixels": [len(labels), size, size, 3], "labels": [len(labels)]}
    header: dict[str, dict] = {
        # A single entry with a JSON string: safetensors' own writer puts several entries in random order.
        "__metadata__": {"description": json.dumps(description)},
    }
    end = 0
    for name, shape in shapes.items():
        code, dtype = DTYPES[name]
        begin, end = end, end + math.prod(shape) * np.dtype(dtype).itemsize
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [begin, end]}
    start = HEADER_BYTES + 8 * math.ceil(len(json.dumps(json.dumps(description["classes"]))) / 8)
    text = json.dumps(header).encode().ljust(start - 8)
    with path.open("wb") as opened:
        file = opened.fileno()
        _write_at(file, 0, struct.pack("<Q", len(text)) + text)
        _write_at(file, start + header["labels"]["data_offsets"][0], np.array(labels, DTYPES["labels"][1]).data)
        yield lambda row, pixels: _write_at(file, start + row * pixels.nbytes, pixels.data)


def _write_at(file: int, position: int, content: bytes | memoryview) -> None:
    """Write at a position of an open file, given by its descriptor, so that processes can share it."""
    rest = memoryview(content).cast("B")
    while rest:
        written = os.pwrite(file, rest, position)
        position, rest = position + written, rest[written:]
