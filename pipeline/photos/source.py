"""Find photos in a folder or archive, and read their bytes."""

import posixpath
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.photos.archives import (
    DANGLING_LINKS,
    FORBIDDEN_FOLDERS,
    LINKED_FOLDERS,
    SPECIAL_FILES,
    VANISHED_FILES,
    is_disk_error,
)
from pipeline.photos.containers import UNPACKED, UNREAD_ARCHIVES, Container, distinct
from pipeline.photos.decoding import UnreadablePhoto, what_to_install

NAMED = 3  # examples in a message
NAMED_KINDS = (LINKED_FOLDERS, FORBIDDEN_FOLDERS, SPECIAL_FILES, UNPACKED, UNREAD_ARCHIVES)  # shown with names
SINGULAR = {
    DANGLING_LINKS: "dangling link",
    FORBIDDEN_FOLDERS: "folder without permission to read",
    LINKED_FOLDERS: "linked folder",
    SPECIAL_FILES: "pipe, socket or device",
    UNPACKED: "archive that is already unpacked",
    UNREAD_ARCHIVES: "7z or RAR archive, to be extracted",
    VANISHED_FILES: "file that vanished",
}


@dataclass(eq=False)
class Photo:
    """A photo, and what `prepare` finds out about it."""

    name: str  # path below the deepest folder that contains all photos
    path: str  # path in the source
    given_label: str = ""  # by its container or the table
    given_split: str = ""  # by the table
    given_in: str = ""  # the table and the line, for messages
    label: int | None = None  # index of its class; None if it has none
    found_label: int | None = None  # the same, before corrections
    class_depth: int | None = None  # which folder of its path is its class, if any; 0 is the outermost
    misnamed: bool = False  # its file name says a different class than its folder, which takes precedence
    readable: bool = True  # False once it could not be decoded
    sha256: str = ""  # of its bytes
    perceptual_hash: bytes = b""
    size: tuple[int, int] | None = None  # width and height in pixels, upright; None if it has no label or is unreadable
    copy_of: str = ""  # the name of the first photo in its group of copies
    split: str = ""  # train, validation or test; set when the photo is written to that split's file
    row: int = -1  # index in that file
    excluded: str = ""  # the reason, if it is in no split
    relabelled_from: str = ""  # the original label, if the user has corrected it

    @property
    def class_index(self) -> int:
        """The label of a photo that has one, as every photo in a split does. Raises ValueError without one."""
        if self.label is None:
            raise ValueError(f"{self.path} has no label")
        return self.label


class PhotoSource:
    """A folder or archive of photos, read in place; threads may share it.

    `skipped` counts the files that are not photos, by kind; `notes` about the source are for the user.
    Raises UserError if `path` does not exist or is neither a folder nor an archive.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stack = ExitStack()
        try:
            container = Container(path, self._stack)
        except BaseException:
            self._stack.close()
            raise
        self._entries = container.photos
        self._linked_folders = container.others[LINKED_FOLDERS]
        self.notes = [printable(note) for note in container.notes]
        self.skipped = {
            _described(kind, paths): len(paths) for kind, paths in sorted(container.others.items()) if paths
        }

    def __enter__(self) -> "PhotoSource":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def photos(self) -> list[Photo]:
        """Return all photos, sorted by path. Raises UserError if there are none."""
        paths = sorted(self._entries)
        if not paths:
            raise UserError(f"{self.path}: contains no photos; {self._describe_contents()}")
        # The folders that all photos share are not part of their names.
        shared = posixpath.commonpath([posixpath.dirname(f"/{path}") for path in paths]).rstrip("/")
        names: set[str] = set()
        photos = []
        for path in paths:
            name = distinct(printable(path[len(shared) :]), names)
            names.add(name)
            label = self._entries[path].label
            photos.append(Photo(name, path, "" if label is None else str(label)))
        return photos

    def read(self, photo: Photo) -> bytes:
        """Return the photo's bytes. Raises UnreadablePhoto if they are damaged, encrypted, not readable or too many."""
        try:
            content = self._entries[photo.path].read()
        except (UnreadablePhoto, MemoryError):
            raise
        except Exception as error:  # unpacking may raise anything on damaged bytes
            if is_disk_error(error):
                error.filename = error.filename or str(self.path)
                raise  # not the photo's fault: excluding it would give a different split
            raise UnreadablePhoto("damaged in its archive") from None
        if not content:
            raise UnreadablePhoto("empty")
        return content

    def _describe_contents(self) -> str:
        """What a source without photos holds instead, and what to do."""
        if self._linked_folders:
            names = ", ".join(self._linked_folders[:NAMED])
            return (
                f"it has linked folders ({names}), which DVC does not follow either; copy them, or use the path of "
                "their target"
            )
        if hint := what_to_install(self.skipped):
            return f"it has {_listed(self.skipped)}; {hint}"
        if self.skipped:
            return f"it has {_listed(self.skipped)}; expected a folder or archive with photos"
        return "it is empty; expected a folder or archive with photos"


def describe_skipped(skipped: dict[str, int]) -> str:
    """For people: `12 .heic (…), 1 dangling link`; an empty text if nothing was skipped."""
    hint = what_to_install(skipped)
    return _listed(skipped) + (f" ({hint})" if hint else "")


def _listed(skipped: dict[str, int]) -> str:
    return ", ".join(f"{count} {_singular(kind) if count == 1 else kind}" for kind, count in skipped.items())


def _singular(kind: str) -> str:
    """The kind of a single file, such as `linked folder (photos/more)` for `linked folders (photos/more)`."""
    plural = next((plural for plural in SINGULAR if kind.startswith(plural)), None)
    return SINGULAR[plural] + kind.removeprefix(plural) if plural else kind


def printable(name: str) -> str:
    """Escape line breaks and other control characters in `name` as Python does (\\r), for text tables."""
    if name.isprintable():
        return name
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in name)


def _described(kind: str, paths: list[str]) -> str:
    return printable(f"{kind} ({', '.join(sorted(paths)[:NAMED])})" if kind in NAMED_KINDS else kind)
