"""Synthetic photos in the layouts that the pipeline knows, as zips and folders."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("cat", "dog")
FLOWERS = ("ox-eye daisy", "rose", "tulip")
TINTS = {
    "cat": (140, 40, 20),
    "dog": (20, 40, 140),
    "ox-eye daisy": (20, 140, 40),
    "rose": (140, 20, 40),
    "tulip": (20, 40, 140),
}

Files = Mapping[str, bytes]  # what a zip or a folder holds: the path of each file, and its bytes


def draw_photo(label: str, number: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """A synthetic photo, different for each `number`: noise in the colour of its class, easy to tell apart."""
    width, height = size
    noise = np.random.default_rng([list(TINTS).index(label), number]).integers(0, 100, (height, width, 3))
    return Image.fromarray((noise + TINTS[label]).astype(np.uint8))


def encode(image: Image.Image, file_format: str = "JPEG", **options: object) -> bytes:
    """The bytes of an image file; `options` are those of Pillow's Image.save."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def photo_bytes(label: str, number: int) -> bytes:
    """A JPEG of `draw_photo(label, number)`."""
    return encode(draw_photo(label, number))


def kaggle_files(cats: int, dogs: int) -> dict[str, bytes]:
    """Kaggle's layout: train/cat.0.jpg, train/dog.0.jpg."""
    return {
        f"train/{label}.{number}.jpg": photo_bytes(label, number)
        for label, count in zip(CLASSES, (cats, dogs), strict=True)
        for number in range(count)
    }


def petimages_files(cats: int, dogs: int) -> dict[str, bytes]:
    """Microsoft's layout: PetImages/Cat/0.jpg, PetImages/Dog/0.jpg, a Thumbs.db in each folder, and a text file."""
    photos = {
        f"PetImages/{label.title()}/{number}.jpg": photo_bytes(label, number)
        for label, count in zip(CLASSES, (cats, dogs), strict=True)
        for number in range(count)
    }
    system = {"PetImages/Cat/Thumbs.db": b"thumbs", "PetImages/Dog/Thumbs.db": b"thumbs", "readme[1].txt": b"read me"}
    return photos | system


def imagefolder_files(cats: int, dogs: int, top: str = "anything") -> dict[str, bytes]:
    """An ImageFolder tree: anything/cats/x0.jpg, anything/dogs/y0.jpg."""
    return {
        f"{top}/{label}s/{letter}{number}.jpg": photo_bytes(label, number)
        for label, letter, count in zip(CLASSES, "xy", (cats, dogs), strict=True)
        for number in range(count)
    }


def flower_files(each: int) -> dict[str, bytes]:
    """Photos of FLOWERS, `each` of every class, in a folder per class: flowers/rose/0.jpg."""
    return {f"flowers/{label}/{number}.jpg": photo_bytes(label, number) for label in FLOWERS for number in range(each)}


def write_folder(path: Path, files: Files) -> None:
    """Write `files` below the folder `path`."""
    path.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)


def write_zip(path: Path, files: Files, compression: int = zipfile.ZIP_DEFLATED) -> None:
    """Write `files` as a zip archive, its entries in the order of the mapping."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, compression)
