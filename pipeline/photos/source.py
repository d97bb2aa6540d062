"""Find labelled photos in a zip or a folder, and read their bytes."""

import errno
import posixpath
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.core.errors import UserError
from pipeline.photos.decoding import UnreadablePhoto
from pipeline.photos.labels import label_of

PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})

LARGEST_FILE = 2**28  # bytes; files in a small zip may unpack to more than fits into memory
ENCRYPTED = 1  # bit of a zip entry's flags


@dataclass(eq=False)
class Photo:
    """A photo, and what `prepare` finds out about it."""

    name: str  # path below the deepest folder that contains all photos
    path: str  # path in the source
    label: int | None  # None if neither the file name nor the folder says cat or dog
    sha256: str = ""  # of its bytes
    split: str = ""  # train, validation or test; set when the photo is written to that split's file
    row: int = -1  # index in that file
    excluded: str = ""  # the reason, if it is in no split
    relabelled_from: str = ""  # the original label, if the user has corrected it


class PhotoSource:
    """A zip archive or a folder of photos, read in place; threads may share it.

    Known layouts: Kaggle's `train/cat.0.jpg`, Microsoft's `PetImages/Cat/0.jpg` and ImageFolder's `cats/any.jpg`.
    Raises UserError if `path` does not exist or is a file other than a zip archive.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._archive: zipfile.ZipFile | None = None
        if path.is_dir():
            return
        if not path.exists():
            raise UserError(f"{path}: no such file or folder; put the photos there, or set prepare.source")
        try:
            self._archive = zipfile.ZipFile(path)
        except MemoryError:
            raise
        except Exception as error:  # reading may raise anything on damaged bytes
            if _is_disk_error(error):
                raise
            raise UserError(
                f"{path}: cannot be read as a zip archive ({error}); download it again or use another file"
            ) from None

    def __enter__(self) -> "PhotoSource":
        return self

    def __exit__(self, *_: object) -> None:
        if self._archive:
            self._archive.close()

    def photos(self) -> list[Photo]:
        """Return all photos, sorted by path, without hidden and system files. Raises UserError if there are none."""
        paths = sorted(path for path in set(self._files()) if _is_photo(PurePosixPath(path)))
        if not paths:
            raise UserError(f"{self.path}: contains no photos; expected a zip or folder with photos")
        rooted = [PurePosixPath("/", path) for path in paths]
        shared = posixpath.commonpath([path.parent for path in rooted])
        names = [printable(str(path.relative_to(shared))) for path in rooted]
        by_name = dict(zip(names, paths, strict=True))  # a zip may contain both ./cat.0.jpg and cat.0.jpg
        return [Photo(name, path, label_of(path)) for name, path in by_name.items()]

    def read(self, photo: Photo) -> bytes:
        """Return the photo's bytes. Raises UnreadablePhoto if they are damaged, encrypted, not readable or too many."""
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
            if _is_disk_error(error) and not isinstance(error, PermissionError):
                error.filename = error.filename or str(self.path)
                raise  # not the photo's fault: excluding it would give a different split
            raise UnreadablePhoto(f"unreadable in its source ({type(error).__name__})") from None
        if not content:
            raise UnreadablePhoto("unreadable (empty)")
        return content

    def _files(self) -> list[str]:
        if self._archive:
            return [entry.filename for entry in self._archive.infolist() if not entry.is_dir()]
        return [path.relative_to(self.path).as_posix() for path in self.path.rglob("*") if path.is_file()]


def _is_disk_error(error: Exception) -> bool:
    """Whether a disk or network failed, or permission is missing; damaged bytes raise other kinds of OSError."""
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)


def printable(name: str) -> str:
    """Escape line breaks and other control characters in `name` as Python does (\\r), for text tables."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in name)


def _is_photo(path: PurePosixPath) -> bool:
    hidden = any(part.startswith((".", "__MACOSX")) and part != ".." for part in path.parts)
    return not hidden and path.suffix.lower() in PHOTO_SUFFIXES
