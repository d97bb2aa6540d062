"""Open whatever photos come in: folders, zips, tars, parquet files, and folders or archives that hold such files.

What a file is, its content tells, not its name.
"""

import errno
import io
import json
import os
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from pipeline.core.errors import UserError
from pipeline.photos.decoding import PHOTO_SUFFIXES, UnreadablePhoto

ARCHIVE_SUFFIXES = frozenset({".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".parquet"})
LARGEST_FILE = 2**28  # bytes; files in a small zip may unpack to more than fits into memory
ENCRYPTED = 1  # bit of a zip entry's flags
DEFLATE64 = 9  # compression method of Windows' Explorer for large files
OTHER_FILES = {  # what else is found at the beginning of a file: what it is, and what to do
    b"7z\xbc\xaf\x27\x1c": "is a 7z archive; extract it, or zip it",
    b"Rar!": "is a RAR archive; extract it, or zip it",
    b"version https://git-lfs": "is a git-lfs pointer; run `git lfs pull`",
    b"<!DOCTYPE": "is a web page, not an archive; log in where you downloaded it, and try again",
    b"<html": "is a web page, not an archive; log in where you downloaded it, and try again",
}


@dataclass(frozen=True)
class Entry:
    """A file in a container. `open` gives its content; it raises UnreadablePhoto or, if a disk fails, OSError."""

    path: str  # from the container's top, with "/"
    size: int  # bytes
    open: Callable[[], BinaryIO]
    label: int | str | None = None  # if the container says it: an index of the class, or its name

    def read(self) -> bytes:
        """Return the bytes. Raises UnreadablePhoto if they are far too many for a photo, or as `open` does."""
        if self.size > LARGEST_FILE:
            raise UnreadablePhoto(f"unreadable (more than {LARGEST_FILE >> 20} MiB)")
        with self.open() as file:
            return file.read()


@dataclass
class Container:
    """The files of a container, and what it has besides files: links that lead nowhere, linked folders."""

    entries: list[Entry] = field(default_factory=list)
    links: list[str] = field(default_factory=list)  # dangling
    linked_folders: list[str] = field(default_factory=list)


def open_container(path: Path, stack: ExitStack) -> Container:
    """Open a folder or archive; `stack` will close it. Archives in it are opened, too, if it has no photos itself.

    Raises UserError if `path` does not exist, or is neither a folder nor an archive.
    """
    if path.is_dir():
        container = _open_folder(path)
    elif path.exists():
        container = Container(_open_archive(stack.enter_context(path.open("rb")), str(path), stack))
    else:
        raise UserError(f"{path}: no such file or folder; put the photos there, or set prepare.source")
    archives = [entry for entry in container.entries if _suffix(entry.path) in ARCHIVE_SUFFIXES]
    if archives and not any(_suffix(entry.path) in PHOTO_SUFFIXES for entry in container.entries):
        others = [entry for entry in container.entries if entry not in archives]
        container.entries = others + [inner for entry in archives for inner in _open_inner(entry, path, stack)]
    return container


def is_archive(path: Path) -> bool:
    """Whether a file is an archive, by its content."""
    with path.open("rb") as file:
        start = file.read(512)
    return (
        start.startswith((b"PK\3\4", b"PK\5\6", b"PAR1", b"\x1f\x8b", b"BZh", b"\xfd7zXZ"))
        or start[257:262] == b"ustar"
    )


def _open_folder(folder: Path) -> Container:
    container = Container()
    for top, names, files in os.walk(folder):
        for name in names:
            if Path(top, name).is_symlink():
                container.linked_folders.append(Path(top, name).relative_to(folder).as_posix())
        for name in files:
            file = Path(top, name)
            relative = file.relative_to(folder).as_posix()
            if file.exists():
                container.entries.append(Entry(relative, file.stat().st_size, partial(_open_file, file)))
            else:
                container.links.append(relative)
    return container


def read_file(file: Path) -> bytes:
    """Return a file's bytes. Raises UnreadablePhoto if it may not be read or is far too large."""
    return Entry(file.name, file.stat().st_size, partial(_open_file, file)).read()


def _open_file(file: Path) -> BinaryIO:
    try:
        return file.open("rb")
    except PermissionError:
        raise UnreadablePhoto("no permission to read it") from None


def _open_inner(entry: Entry, path: Path, stack: ExitStack) -> Iterator[Entry]:
    """The files of an archive inside a folder or another archive, below a folder with the archive's name."""
    name = f"{path}/{entry.path}"
    with _explained(name):
        if path.is_dir():
            file = stack.enter_context(entry.open())
        else:  # unpacked, because a compressed file is slow to move about in
            with entry.open() as packed:
                file = Spool(stack).fill(packed)
    for inner in _open_archive(file, name, stack):
        yield replace(inner, path=f"{PurePosixPath(entry.path).stem}/{inner.path}")


def _open_archive(file: BinaryIO, name: str, stack: ExitStack) -> list[Entry]:
    """The files of the archive that an open file holds. `name` is for messages."""
    start = file.read(512)
    file.seek(0)
    for magic, what in OTHER_FILES.items():
        if start.lstrip().lower().startswith(magic.lower()):
            raise UserError(f"{name}: {what}")
    with _explained(name):
        if start.startswith(b"PAR1"):
            return _open_parquet(file, stack)
        return _open_tar(file, stack) or _open_zip(file, stack)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn what reading the archive `name` raises into UserError, unless it is a disk that fails."""
    try:
        yield
    except (MemoryError, UserError):
        raise
    except UnreadablePhoto as reason:
        raise UserError(f"{name}: {reason}") from None
    except Exception as error:  # reading may raise anything on damaged bytes
        if is_disk_error(error):
            raise
        raise UserError(
            f"{name}: cannot be read as a zip, tar or parquet file ({error}); download it again or use another file"
        ) from None


class Spool:
    """A temporary file of unpacked contents, any of which can be read again; `stack` closes it."""

    def __init__(self, stack: ExitStack) -> None:
        self._file = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 (`stack` closes it)

    def fill(self, content: BinaryIO) -> BinaryIO:
        """Write `content` to an empty spool, and return the spool's file, at its start."""
        shutil.copyfileobj(content, self._file)
        self._file.seek(0)
        return self._file

    def add(self, path: str, content: BinaryIO, label: int | str | None = None) -> Entry:
        """Append `content`, and return its entry."""
        offset = self._file.tell()
        shutil.copyfileobj(content, self._file)
        size = self._file.tell() - offset
        self._file.flush()
        return Entry(path, size, lambda: io.BytesIO(os.pread(self._file.fileno(), size, offset)), label)


def _open_zip(file: BinaryIO, stack: ExitStack) -> list[Entry]:
    archive = stack.enter_context(zipfile.ZipFile(file))
    entries = []
    for info in archive.infolist():
        if not info.is_dir():
            # Zips made on Windows may have backslashes, in spite of the format.
            path = info.filename if "/" in info.filename else info.filename.replace("\\", "/")
            entries.append(Entry(path, info.file_size, partial(_open_zipped, archive, info)))
    return entries


def _open_zipped(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> BinaryIO:
    if info.flag_bits & ENCRYPTED:
        raise UnreadablePhoto("encrypted in its source")
    if info.compress_type == DEFLATE64:
        raise UnreadablePhoto("compressed with Deflate64; re-zip it")
    return archive.open(info)


def _open_tar(file: BinaryIO, stack: ExitStack) -> list[Entry] | None:
    """The files of a tar archive, compressed or not; None if it is none. Unpacked once, so that any can be read."""
    try:
        archive = tarfile.open(fileobj=file)  # noqa: SIM115 (closed with `file`)
        members = archive.getmembers()
    except tarfile.ReadError:
        file.seek(0)
        return None
    spool = Spool(stack)
    return [spool.add(member.name, archive.extractfile(member)) for member in members if member.isfile()]


def _open_parquet(file: BinaryIO, stack: ExitStack) -> list[Entry]:
    """The rows of a parquet file as Hugging Face writes it: a column of images, with their bytes, and one of labels."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise UserError("parquet needs pyarrow; run `pip install -r requirements/parquet.txt`") from None
    table = pq.ParquetFile(file)
    schema = table.schema_arrow
    image = next((f.name for f in schema if pa.types.is_struct(f.type) and f.type.get_field_index("bytes") >= 0), None)
    label = next((name for name in ("label", "labels", "class", "category") if name in schema.names), None)
    if image is None:
        raise UserError(f"its columns are {', '.join(schema.names)}; expected one of images, with their bytes")
    features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    names = features.get(label, {}).get("names")
    spool = Spool(stack)
    entries: list[Entry] = []
    for batch in table.iter_batches(batch_size=256, columns=[column for column in (image, label) if column]):
        labels = batch.column(label).to_pylist() if label else [None] * len(batch)
        for value, its_label in zip(batch.column(image).to_pylist(), labels, strict=True):
            content = io.BytesIO((value or {}).get("bytes") or b"")
            path = f"{len(entries):06}{PurePosixPath((value or {}).get('path') or '').suffix or '.jpg'}"
            its_label = names[its_label] if names and isinstance(its_label, int) else its_label
            entries.append(spool.add(path, content, its_label))
    return entries


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


def is_disk_error(error: Exception) -> bool:
    """Whether a disk or network failed, or permission is missing; damaged bytes raise other kinds of OSError."""
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)
