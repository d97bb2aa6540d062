"""Finding labelled photos in a zip or a folder, and turning one photo's bytes into pixels."""

import errno
import io
import logging
import posixpath
import re
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from catsdogs import CLASSES
from catsdogs.errors import UserError

import numpy as np
from PIL import Image, ImageOps

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})

# Center crop, as torchvision's ImageNet recipes do: the shorter side to 256/224 of the size, then the centre.
CENTER_CROP_SHARE = 224 / 256


LARGEST_FILE = 2**28  # bytes; a zip may hold a few that unpack to more than all memory
ENCRYPTED = 1  # a bit of a zip entry's flags


class UnreadablePhoto(Exception):
    """Bytes that cannot be decoded; the text says why, the same on every machine."""


@dataclass(eq=False)
class Photo:
    """A picture file, and what `prepare` finds out about it."""

    name: str  # its path below the deepest folder that holds all photos
    path: str  # its path in the source
    label: int | None  # None where neither the file's name nor its folder tells cat or dog
    sha256: str = ""  # of its bytes
    split: str = ""  # train, validation or test, once it is written to that split's file ...
    row: int = -1  # ... and its place there
    left_out: str = ""  # otherwise, why
    relabelled_from: str = ""  # where the user has given it another label: the one it came with


class PhotoSource:
    """A zip archive or a folder of photos, read where it lies; threads may share one.

    Known layouts: Kaggle's `train/cat.0.jpg`, Microsoft's `PetImages/Cat/0.jpg`, an ImageFolder tree's `cats/any.jpg`.
    Raises UserError where there is no such file or folder, or it is not a zip.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._archive: zipfile.ZipFile | None = None
        if path.is_dir():
            return
        if not path.exists():
            raise UserError(f"{path}: no such file or folder; put the photos there, or name another")
        try:
            self._archive = zipfile.ZipFile(path)
        except MemoryError:
            raise
        except Exception as error:  # reading may raise anything on damaged bytes
            if _is_of_the_disk(error):
                raise
            raise UserError(
                f"{path}: cannot be read as a zip archive ({error}); get it anew, or name another file"
            ) from None

    def __enter__(self) -> "PhotoSource":
        return self

    def __exit__(self, *_: object) -> None:
        if self._archive:
            self._archive.close()

    def photos(self) -> list[Photo]:
        """Every picture file, ordered by name; hidden and system files are passed over."""
        paths = sorted(path for path in set(self._files()) if _is_picture(PurePosixPath(path)))
        if not paths:
            raise UserError(f"{self.path}: holds no pictures; expected a zip or folder with photos in it")
        rooted = [PurePosixPath("/", path) for path in paths]
        shared = posixpath.commonpath([path.parent for path in rooted])
        names = [printable(str(path.relative_to(shared))) for path in rooted]
        by_name = dict(zip(names, paths, strict=True))  # a zip may hold ./cat.0.jpg beside cat.0.jpg
        return [Photo(name, path, _label(path)) for name, path in by_name.items()]

    def read(self, photo: Photo) -> bytes:
        """The photo's bytes. Raises UnreadablePhoto where they are damaged, encrypted, forbidden or far too many."""
        try:
            if self._archive:
                entry = self._archive.getinfo(photo.path)
                if entry.flag_bits & ENCRYPTED:
                    raise UnreadablePhoto("encrypted in its source")
                size, read = entry.file_size, lambda: self._archive.read(entry)
            else:
                file = self.path / photo.path
                size, read = file.stat().st_size, file.read_bytes
            if size > LARGEST_FILE:
                raise UnreadablePhoto(f"unreadable (more than {LARGEST_FILE >> 20} MiB)")
            content = read()
        except (UnreadablePhoto, MemoryError):
            raise
        except Exception as error:  # unpacking may raise anything on damaged bytes
            if _is_of_the_disk(error) and not isinstance(error, PermissionError):
                error.filename = error.filename or str(self.path)
                raise  # not the photo's fault: going on would draw another split
            raise UnreadablePhoto(f"unreadable in its source ({type(error).__name__})") from None
        if not content:
            raise UnreadablePhoto("unreadable (empty)")
        return content

    def _files(self) -> list[str]:
        if self._archive:
            return [entry.filename for entry in self._archive.infolist() if not entry.is_dir()]
        return [path.relative_to(self.path).as_posix() for path in self.path.rglob("*") if path.is_file()]


def decode(content: bytes, size: int, resize: str) -> np.ndarray:
    """Decode a photo, turn it upright, and scale it: uint8 RGB of shape [size, size, 3].

    `resize` is `squeeze` (the whole photo, its shape given up) or `center_crop` (its centre, its shape kept);
    both scale with an antialiased bilinear filter. Raises UnreadablePhoto.
    """
    picture = open_upright(content)
    box = None
    if resize == "center_crop":
        side = min(picture.size) * CENTER_CROP_SHARE
        left, top = (picture.width - side) / 2, (picture.height - side) / 2
        box = (left, top, left + side, top + side)
    return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR, box=box))


def open_upright(content: bytes) -> Image.Image:
    """Decode a photo and turn it as its camera was held: RGB, transparent parts white. Raises UnreadablePhoto."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return _to_rgb(ImageOps.exif_transpose(image))
    except MemoryError:
        raise
    except Exception as error:  # a decoder may raise anything on damaged bytes
        raise UnreadablePhoto(f"unreadable ({type(error).__name__})") from None


def silence_pillow() -> None:
    """Pillow remarks on odd files, in warnings and in its log; what matters is whether they decode."""
    warnings.simplefilter("ignore")
    logging.getLogger("PIL").addHandler(logging.NullHandler())


def _is_of_the_disk(error: Exception) -> bool:
    """Whether a disk or network failed, or a permission is missing; damaged bytes lead to OSErrors of another kind."""
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow would clip 16-bit grey at 255 instead of scaling it
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:  # as on a white page; what lies under it may be any colour
        picture = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return image.convert("RGB")


def printable(name: str) -> str:
    """`name` with line ends and the like written as in Python (\\r), for tables of text."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in name)


def _is_picture(path: PurePosixPath) -> bool:
    hidden = any(part.startswith((".", "__MACOSX")) and part != ".." for part in path.parts)
    return not hidden and path.suffix.lower() in PICTURE_SUFFIXES


def _label(path: str) -> int | None:
    """Kaggle's `cat.0.jpg` by the file's name, else `Cat/` or `cats/` by its folder's."""
    file = PurePosixPath(path)
    kaggle = re.fullmatch(r"(cat|dog)\.\d+\.\w+", file.name)
    name = kaggle[1] if kaggle else file.parent.name.lower().removesuffix("s")
    return CLASSES.index(name) if name in CLASSES else None
