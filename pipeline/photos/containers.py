"""Find the photos in folders and archives, and in archives inside them.

A file's content decides what it is, not its name.
"""

import re
import stat
from collections import defaultdict
from collections.abc import Collection
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path, PurePosixPath
from posixpath import dirname, join, split, splitext

from pipeline.core.errors import UserError
from pipeline.core.sources import describe_missing
from pipeline.photos.archives import (
    START,
    Entry,
    Listing,
    NoArchive,
    Spool,
    explained,
    is_archive_start,
    list_archive,
    list_folder,
    open_file,
)
from pipeline.photos.decoding import PHOTO_SUFFIXES, photo_suffix

ARCHIVE_NAME = re.compile(
    r"(?P<folder>.+?)\.(?P<suffix>zip|parquet|tar|tgz|tbz2?|txz|(tar\.)?(gz|bz2|xz))", re.IGNORECASE | re.DOTALL
)
SINGLE_FILE_SUFFIXES = ("gz", "bz2", "xz")  # of a compressed file that need not be a tar
HIDDEN = re.compile(r"(^|/)(\.(?!\./)|__MACOSX)")  # files and folders, but not ../
DEEPEST = 5  # nested archives; some archives contain themselves
TEXT_SUFFIXES = frozenset({".txt", ".csv", ".json", ".xml"})  # not opened: each photo may have one, with its label
PHOTO, ARCHIVE, NO_SUFFIX = "photo", "archive", "without a suffix"
UNPACKED, UNREAD_ARCHIVES = "archives that are already unpacked", "7z or RAR archives, to be extracted"


class Container:
    """The photos in a folder or archive, including archives inside it.

    `photos` are by path; those of an inner archive are below its path without the suffix: `2023/photos/cat/1.jpg`.
    `others` has the paths of everything else, by kind; `notes` are for the user. `stack` closes what stays open.
    Raises UserError if `path` does not exist, or if it or an archive inside it cannot be read.
    """

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.photos: dict[str, Entry] = {}
        self.others: dict[str, list[str]] = defaultdict(list)
        self.notes: list[str] = []
        self._path, self._stack = path, stack
        if path.is_dir():
            self._add(list_folder(path), str(path), "", depth=0)
        elif path.exists():
            refuse_special(path)
            listing = list_archive(stack.enter_context(path.open("rb")), str(path), stack)
            self._add(listing, str(path), "", depth=0)
        else:
            raise UserError(describe_missing(path))

    def _add(self, listing: Listing, name: str, folder: str, depth: int) -> None:
        """Add the content of a folder or archive, called `name` in messages, with its photos below `folder`."""
        with explained(name):
            listing.unpack()
        if listing.note:
            self.notes.append(f"{name} {listing.note}")
        for kind, paths in listing.others.items():
            self.others[kind] += [join(folder, path) for path in paths]
        archives: dict[str, Entry] = {}
        for entry in listing.entries:
            place = join(folder, entry.path.lstrip("/"))
            if "//" in place or "./" in place:  # possible in an archive
                place = str(PurePosixPath(place))
            kind = _kind(place, entry)
            if kind == PHOTO:
                self.photos[distinct(place, self.photos)] = entry
            elif kind == ARCHIVE:
                archives[distinct(place, archives)] = entry
            else:
                self.others[kind].append(place)
        for place in sorted(archives):
            self._open_inner(place, archives[place], depth + 1)

    def _open_inner(self, place: str, archive: Entry, depth: int) -> None:
        """Add the photos of an inner archive, unless it is already unpacked next to it."""
        name = f"{self._path}/{place}"
        if depth > DEEPEST:
            raise UserError(f"{name}: is nested in {DEEPEST} other archives; extract them")
        with explained(name):
            if self._path.is_dir() and depth == 1:
                file = self._stack.enter_context(archive.open())
            else:  # unpacked, because seeking in a compressed file is slow
                with archive.open() as packed:
                    file = Spool(self._stack).fill(packed)
        matched = ARCHIVE_NAME.fullmatch(place)
        folder = matched["folder"] if matched else place
        try:
            listing = list_archive(file, name, self._stack)
        except NoArchive:
            if matched and matched["suffix"].lower() not in SINGLE_FILE_SUFFIXES:
                raise
            self.others[_suffix(place) or NO_SUFFIX].append(place)
            return
        if self._has(listing, (dirname(place), folder)):
            self.others[UNPACKED].append(place)
        else:
            self._add(listing, name, folder, depth)

    def _has(self, listing: Listing, folders: tuple[str, ...]) -> bool:
        """Whether most photos of an archive are already in one of the folders, with the same path and size."""
        inner = [entry for entry in listing.entries if _suffix(entry.path) in PHOTO_SUFFIXES]
        for folder in folders:
            beside = [self.photos.get(str(PurePosixPath(folder, entry.path.lstrip("/")))) for entry in inner]
            same = [there for there, entry in zip(beside, inner, strict=True) if there and there.size == entry.size]
            if 2 * len(same) > len(inner):
                return True
        return False


def distinct(path: str, taken: Collection[str]) -> str:
    """`path`, or `folder/(2)/name` if it is taken. Labels and tables can still find it by its folders and its name."""
    if path not in taken:
        return path
    folder, name = split(path)
    return next(other for number in count(2) if (other := join(folder, f"({number})", name)) not in taken)


def is_archive(path: Path) -> bool:
    """Whether a file is an archive, by its content. Raises UserError for a pipe, socket or device."""
    refuse_special(path)
    with path.open("rb") as file:
        return is_archive_start(file.read(START))


def refuse_special(path: Path) -> None:
    """Raise UserError for a pipe, socket or device, from which reading may never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise UserError(f"{path}: is a pipe, socket or device; expected a file or folder")


def read_file(file: Path) -> bytes:
    """Return a file's bytes. Raises UnreadablePhoto if it may not be read or is larger than LARGEST_FILE."""
    return Entry(file.name, file.stat().st_size, partial(open_file, file)).read()


def _kind(path: str, entry: Entry) -> str:
    """PHOTO, ARCHIVE, or the kind under which any other file is counted."""
    if HIDDEN.search(path):
        return "hidden"
    suffix = _suffix(path)
    if suffix in PHOTO_SUFFIXES:
        return PHOTO
    if ARCHIVE_NAME.fullmatch(path):
        return ARCHIVE
    if suffix in TEXT_SUFFIXES:
        return suffix
    if suffix in (".7z", ".rar"):
        return UNREAD_ARCHIVES
    start = entry.start()
    if not suffix and is_archive_start(start):  # with a suffix, it is a document such as .docx
        return ARCHIVE
    found = photo_suffix(start)
    if found == ".tif" and suffix:  # a camera's raw file, of which only a small preview could be decoded
        return suffix
    return PHOTO if found in PHOTO_SUFFIXES else found or suffix or NO_SUFFIX


def _suffix(path: str) -> str:
    """The suffix of a file's name in lower case: `.jpg` for `1.JPG `; empty if it has none."""
    return splitext(path)[1].strip().lower().removesuffix(".")
