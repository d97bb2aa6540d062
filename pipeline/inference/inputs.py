"""The photos that a user names: single ones, and all those in folders and archives."""

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.inference.ensemble import InputPhoto
from pipeline.photos.containers import is_archive, read_file
from pipeline.photos.decoding import UnreadablePhoto
from pipeline.photos.source import PhotoSource, describe_skipped, printable


def paths_of(names: list[str]) -> list[Path]:
    """The given paths, with `-` replaced by the paths on stdin, one per line."""
    paths: list[Path] = []
    for name in names:
        paths += stdin_paths() if name == "-" else [Path(name)]
    return paths


def stdin_paths() -> list[Path]:
    return [Path(os.fsdecode(line)) for line in sys.stdin.buffer.read().splitlines() if line]


def photos_at(path: Path, sources: ExitStack) -> list[InputPhoto]:
    """The photos of a folder or archive (closed by `sources`), or the single photo at `path`."""
    name = printable(str(path))
    try:
        if not path.exists():
            return [InputPhoto(name, failing("no such file or folder"))]
        if not path.is_dir() and not is_archive(path):
            return [InputPhoto(name, partial(read_file, path))]
        source = sources.enter_context(PhotoSource(path))
        for note in source.notes:
            print(f"note: {note}", file=sys.stderr)
        if source.skipped:
            print(f"note: skipped in {name}: {describe_skipped(source.skipped)}", file=sys.stderr)
        return [InputPhoto(f"{name}/{printable(photo.path)}", partial(source.read, photo)) for photo in source.photos()]
    except UserError as error:
        return [InputPhoto(name, failing(str(error).removeprefix(f"{path}: ")))]
    except OSError as error:  # no permission, or a name that is too long
        return [InputPhoto(name, failing(error.strerror or str(error)))]


def failing(reason: str) -> Callable[[], bytes]:
    """A `read` function that raises UnreadablePhoto."""

    def read() -> bytes:
        raise UnreadablePhoto(reason)

    return read
