"""List the files in one folder, zip, tar or parquet file, so that any of them can be read, in any order."""

import errno
import io
import json
import os
import re
import shutil
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from posixpath import dirname, join, normpath
from typing import BinaryIO, TypeGuard, cast

from pipeline.core.errors import UserError, list_some
from pipeline.photos.decoding import UnreadablePhoto

LARGEST_FILE = 2**28  # bytes; files in a small zip may unpack to more than fits into memory
START = 512  # bytes at the beginning of a file, enough to see what it is
ENCRYPTED, UTF_8 = 1, 0x800  # in a zip entry's flags
DEFLATE64 = 9  # the compression method that Windows Explorer uses for large files
UNICODE_PATH = 0x7075  # Info-ZIP's extra field of a zip entry, with its name in UTF-8
WESTERN = frozenset("ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜáíóúñÑªºß")  # the non-ASCII letters of code page 437
SURROGATES = re.compile("[\ud800-\udfff]")  # how Python decodes bytes that are not UTF-8
# Kinds of paths that are not readable files; see Listing.others.
DANGLING_LINKS, LINKED_FOLDERS, VANISHED_FILES = "dangling links", "linked folders", "files that vanished"
FORBIDDEN_FOLDERS, SPECIAL_FILES = "folders without permission to read", "pipes, sockets or devices"
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ")  # gzip, bzip2 and xz, perhaps with a tar inside
OTHER_FILES = {  # by their first bytes: what they are, and what to do
    b"7z\xbc\xaf\x27\x1c": "is a 7z archive; extract it, or zip it",
    b"Rar!": "is a RAR archive; extract it, or zip it",
    b"version https://git-lfs": "is a git-lfs pointer; run `git lfs pull`",
    b"<!DOCTYPE": "is a web page, not an archive; log in where you downloaded it, and try again",
    b"<html": "is a web page, not an archive; log in where you downloaded it, and try again",
}


@dataclass(frozen=True)
class Entry:
    """A file in a container. `open` returns its content; it raises UnreadablePhoto, or OSError if a disk fails."""

    path: str  # from the container's top, with "/"
    size: int  # bytes
    open: Callable[[], BinaryIO]
    label: int | str | None = None  # if the container has labels: the index of the class, or its name

    def read(self) -> bytes:
        """Return the bytes. Raises UnreadablePhoto if there are more than LARGEST_FILE, and whatever `open` raises."""
        if self.size > LARGEST_FILE:
            raise UnreadablePhoto(f"unreadable (more than {LARGEST_FILE >> 20} MiB)")
        with self.open() as file:
            return file.read()

    def start(self) -> bytes:
        """Return the first START bytes; empty if damaged, forbidden or gone. Raises OSError if a disk fails."""
        try:
            with self.open() as file:
                return file.read(START)
        except (UnreadablePhoto, FileNotFoundError):
            return b""
        except Exception as error:  # unpacking may raise anything on damaged bytes
            if is_disk_error(error):
                raise
            return b""


@dataclass
class Listing:
    """What one folder or archive holds."""

    entries: list[Entry] = field(default_factory=list)
    others: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # all other paths, by kind
    note: str = ""  # for the user
    unpack: Callable[[], None] = lambda: None  # to be called before any entry is opened


class NoArchive(UserError):
    """Raised for a compressed file that does not contain an archive."""


def list_folder(folder: Path) -> Listing:
    """List the files below a folder. Raises OSError if the folder or a disk cannot be read."""
    found = Listing()
    unread = [""]
    while unread:
        top = unread.pop()
        try:
            with os.scandir(folder / top) as scan:
                children = sorted(scan, key=lambda child: child.name)
        except PermissionError:
            if not top:
                raise
            found.others[FORBIDDEN_FOLDERS].append(top)
            continue
        for child in children:
            path = join(top, child.name)
            if child.is_dir(follow_symlinks=False):
                unread.append(path)
            else:
                _add_file(found, path, child)
    found.note = _note_of_names(found.entries)
    return found


def _add_file(found: Listing, path: str, child: os.DirEntry) -> None:
    """Add an entry of a folder that is not itself a folder: a file, a link or a special file."""
    opened = partial(open_file, Path(child.path))
    try:
        status = child.stat()
    except PermissionError:
        found.entries.append(Entry(path, 0, opened))  # reading it then says why
        return
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        found.others[DANGLING_LINKS if child.is_symlink() else VANISHED_FILES].append(path)
        return
    if stat.S_ISREG(status.st_mode):
        found.entries.append(Entry(path, status.st_size, opened))
    else:
        found.others[LINKED_FOLDERS if stat.S_ISDIR(status.st_mode) else SPECIAL_FILES].append(path)


def open_file(file: Path) -> BinaryIO:
    """Open a file. Raises UnreadablePhoto without permission to read it."""
    try:
        return file.open("rb")
    except PermissionError:
        raise UnreadablePhoto("no permission to read it") from None


def list_archive(file: BinaryIO, name: str, stack: ExitStack) -> Listing:
    """List the files of the archive in an open file. `name` is for messages; `stack` closes what stays open.

    Raises UserError if it is not an archive (NoArchive if it is only compressed) or is damaged.
    """
    file = io.BufferedReader(_OwnPosition(file))
    start = file.read(START)
    file.seek(0)
    for magic, what in OTHER_FILES.items():
        if start.lstrip().lower().startswith(magic.lower()):
            raise UserError(f"{name}: {what}")
    with explained(name):
        if start.startswith(b"PAR1"):
            return _list_parquet(file, name, stack)
        if found := _list_tar(file, stack):
            return found
        if start.startswith(COMPRESSED):
            raise NoArchive(f"{name}: is compressed, but not a tar archive; extract it")
        return _list_zip(file, stack)


def is_archive_start(start: bytes) -> bool:
    """Whether the first START bytes of a file are those of an archive."""
    return start.startswith((b"PK\3\4", b"PK\5\6", b"PAR1", *COMPRESSED)) or start[257:262] == b"ustar"


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn errors of reading the archive `name` into UserError, unless a disk failed."""
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


def is_disk_error(error: Exception) -> TypeGuard[OSError]:
    """Whether a disk or network failed, or permission is missing. Damaged bytes raise OSError with other numbers."""
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)


class _OwnPosition(io.RawIOBase):
    """Reads an open file from its own position. Forked processes share the position of the file itself."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        size = os.fstat(self._file.fileno()).st_size
        position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: size}[whence]
        if position < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._position = position
        return position

    def readinto(self, buffer: memoryview) -> int:  # pyrefly: ignore[bad-override]
        content = os.pread(self._file.fileno(), len(buffer), self._position)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


class Spool:
    """A temporary file of unpacked contents, each of which can be read in any order. `stack` closes it."""

    def __init__(self, stack: ExitStack) -> None:
        self._file = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 (`stack` closes it)
        self._ends = [0]

    def fill(self, content: BinaryIO) -> BinaryIO:
        """Write `content` to an empty spool and return its file, positioned at the start."""
        shutil.copyfileobj(content, self._file)
        self._file.seek(0)
        return self._file

    def add(self, content: BinaryIO) -> int:
        """Append `content` and return its number, for `open`."""
        shutil.copyfileobj(content, self._file)
        self._ends.append(self._file.tell())
        return len(self._ends) - 2

    def flush(self) -> None:
        """Make everything added readable; call it after the last `add`."""
        self._file.flush()

    def open(self, number: int) -> BinaryIO:
        """Open the content with this number. Threads and forked processes may share the spool."""
        start, end = self._ends[number : number + 2]
        return io.BytesIO(os.pread(self._file.fileno(), end - start, start))


def _note_of_names(entries: list[Entry]) -> str:
    """A note on names in a folder or tar that are not UTF-8, which Python decodes as lone surrogates; else empty."""
    odd = [entry.path for entry in entries if not entry.path.isascii() and SURROGATES.search(entry.path)]
    return f"has {len(odd)} names that are not UTF-8, such as {odd[0]}; rename them if they matter" if odd else ""


def _list_zip(file: BinaryIO, stack: ExitStack) -> Listing:
    archive = stack.enter_context(zipfile.ZipFile(file))
    files = [info for info in archive.infolist() if not info.is_dir()]
    names, note = _names_in_zip(files)
    entries = []
    for name, info in zip(names, files, strict=True):
        # Zips made on Windows may have backslashes, although the format forbids them.
        path = name if "/" in name else name.replace("\\", "/")
        if not path.endswith("/"):
            entries.append(Entry(path, info.file_size, partial(_open_zipped, archive, info)))
    return Listing(entries, note=note)


def _open_zipped(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> BinaryIO:
    if info.flag_bits & ENCRYPTED:
        raise UnreadablePhoto("encrypted in its source")
    if info.compress_type == DEFLATE64:
        raise UnreadablePhoto("compressed with Deflate64; re-zip it")
    return cast(BinaryIO, archive.open(info))


def _names_in_zip(files: list[zipfile.ZipInfo]) -> tuple[list[str], str]:
    """The files' names, and a note for the user, which may be empty.

    A name is UTF-8 if its flag says so, or if it is in Info-ZIP's extra field. According to the format, all others are
    in code page 437; in practice they are in UTF-8 or in the code page of the computer that made the zip.
    """
    known = [
        info.filename if info.flag_bits & UTF_8 or info.filename.isascii() else _unicode_path(info) for info in files
    ]
    decoded, encoding = _decode([_raw_name(info) for info, name in zip(files, known, strict=True) if not name])
    rest = iter(decoded)
    names = [name or next(rest) for name in known]
    if encoding == "UTF-8":
        return names, ""
    return names, (
        f"does not say how its file names are encoded; read as {encoding}, such as {decoded[0]}; if that is wrong, "
        "extract it: python -m zipfile --metadata-encoding CODEPAGE -e ZIP FOLDER"
    )


def _raw_name(info: zipfile.ZipInfo) -> bytes:
    """The bytes of a name that is not marked as UTF-8."""
    return info.orig_filename.encode("cp437")


def _unicode_path(info: zipfile.ZipInfo) -> str:
    """The name in Info-ZIP's Unicode Path field; empty if it is missing, or out of date after a renaming."""
    extra = info.extra
    while len(extra) >= 4:
        kind, size = struct.unpack("<HH", extra[:4])
        content, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == UNICODE_PATH and content[1:5] == struct.pack("<L", zlib.crc32(_raw_name(info))):
            return content[5:].decode(errors="replace")
    return ""


def _decode(names: list[bytes]) -> tuple[list[str], str]:
    """Decode the names, all in the same encoding; return them and the encoding, a guess unless it is UTF-8."""
    with suppress(UnicodeDecodeError):
        return [name.decode() for name in names], "UTF-8"
    as_western = [name.decode("cp437") for name in names]
    if all(letter.isascii() or letter in WESTERN for name in as_western for letter in name):
        return as_western, "code page 437"
    with suppress(UnicodeDecodeError):
        return [name.decode("gbk") for name in names], "GBK"
    return as_western, "code page 437"


def _list_tar(file: BinaryIO, stack: ExitStack) -> Listing | None:
    """List the files of a tar archive, compressed or not; None if the file is not one, or is empty."""
    try:
        archive = tarfile.open(fileobj=file)  # noqa: SIM115 (closed with `file`)
    except tarfile.ReadError:
        file.seek(0)
        return None
    members = archive.getmembers()
    if not members:
        file.seek(0)
        return None
    files = [member for member in members if member.isfile()]
    spool = Spool(stack)

    def unpack() -> None:
        for member in files:
            spool.add(cast(BinaryIO, archive.extractfile(member)))
        spool.flush()

    found = Listing(unpack=unpack)
    for number, member in enumerate(files):
        found.entries.append(Entry(member.name, member.size, partial(spool.open, number)))
    _add_links(found, members)
    found.others[SPECIAL_FILES] += [member.name for member in members if member.isdev()]
    found.note = _note_of_names(found.entries)
    return found


def _add_links(found: Listing, members: list[tarfile.TarInfo]) -> None:
    """Add the links in a tar as the files that they point to."""
    by_path = {normpath(entry.path): entry for entry in found.entries}
    folders = {normpath(member.name) for member in members if member.isdir()}
    for member in members:
        if member.issym() or member.islnk():
            target = normpath(join(dirname(member.name) if member.issym() else "", member.linkname))
            if target in by_path:
                found.entries.append(replace(by_path[target], path=member.name))
            else:
                found.others[LINKED_FOLDERS if target in folders else DANGLING_LINKS].append(member.name)


def _list_parquet(file: BinaryIO, name: str, stack: ExitStack) -> Listing:
    """List the rows of a parquet file as Hugging Face writes it: a column of images (bytes) and one of labels."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise UserError(f"{name}: parquet needs pyarrow; run `pip install -r requirements/parquet.txt`") from None
    table = pq.ParquetFile(file)
    schema = table.schema_arrow
    image = next((f.name for f in schema if pa.types.is_struct(f.type) and f.type.get_field_index("bytes") >= 0), None)
    label = next((name for name in ("label", "labels", "class", "category") if name in schema.names), None)
    if image is None:
        raise UserError(
            f"{name}: its columns are {', '.join(schema.names)}; expected a column of images with their bytes"
        )
    features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    names = features.get(label, {}).get("names")
    spool = Spool(stack)
    entries: list[Entry] = []
    for batch in table.iter_batches(batch_size=256, columns=[column for column in (image, label) if column]):
        labels = batch.column(label).to_pylist() if label else [None] * len(batch)
        for value, its_label in zip(batch.column(image).to_pylist(), labels, strict=True):
            content = (value or {}).get("bytes") or b""
            path = f"{len(entries):06}{PurePosixPath((value or {}).get('path') or '').suffix or '.jpg'}"
            if names and isinstance(its_label, int):
                if its_label >= len(names):
                    raise UserError(
                        f"{name}: the label of row {len(entries)} is {its_label}, but there are {len(names)} classes, "
                        f"{list_some(names)}; expected a number from 0 to {len(names) - 1}, or -1 for none"
                    )
                its_label = names[its_label] if its_label >= 0 else None  # -1 marks rows without a label
            number = spool.add(io.BytesIO(content))
            entries.append(Entry(path, len(content), partial(spool.open, number), its_label))
    spool.flush()
    return Listing(entries)
