"""Let a training run be watched: tables that grow at the results' paths while it trains."""

import csv
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self, TextIO

from pipeline.core.files import partial_of


class LiveTables:
    """CSV tables that can be read at any time, because they grow by whole rows; a context manager.

    They are empty at first, which shows that the run has begun: fitting the head takes a while. At the end the results
    replace them. If the run does not reach its end, the results of an earlier run come back, or else nothing remains.
    Without paths, as in all processes but the first, it does nothing.
    """

    def __init__(self, *paths: Path) -> None:
        self._tables = [_GrowingTable(path) for path in paths]

    def __enter__(self) -> Self:
        with self._growing():
            for table in self._tables:
                table.begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for table in self._tables:
            table.close(is_complete=kind is None)

    def follow(self, *contents: list[dict]) -> None:
        """Append to each table the rows of its content that it lacks."""
        with self._growing():
            for table, rows in zip(self._tables, contents, strict=False):
                table.follow(rows)

    @contextmanager
    def _growing(self) -> Iterator[None]:
        """If the disk is full, warn and stop growing."""
        try:
            yield
        except OSError as error:
            self.__exit__(type(error))
            self._tables = []
            print(f"warning: {error.strerror}; the curves of this training run do not grow", file=sys.stderr)


class _GrowingTable:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._earlier = partial_of(path.with_name(f"{path.name}.earlier"))  # git and DVC ignore it
        self._has_begun = False
        self._file: TextIO | None = None
        self._length = 0

    def begin(self) -> None:
        """Set an earlier result aside, which may be a hard link to DVC's cache, and create an empty file."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._earlier.exists():
            self._path.unlink(missing_ok=True)  # the unfinished table of a killed process
        else:
            with suppress(FileNotFoundError):
                self._path.rename(self._earlier)
        self._has_begun = True
        self._file = self._path.open("w", encoding="utf-8")

    def follow(self, rows: list[dict]) -> None:
        new = rows[self._length :]
        if not (new and self._file):
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, new[0], lineterminator="\n")
        if self._length == 0:
            writer.writeheader()
        writer.writerows(new)
        self._file.write(text.getvalue())
        self._file.flush()
        self._length = len(rows)

    def close(self, *, is_complete: bool) -> None:
        if self._file:
            with suppress(OSError):  # what could not be written before
                self._file.close()
        if is_complete:
            self._earlier.unlink(missing_ok=True)
        elif self._has_begun:
            self._path.unlink(missing_ok=True)
            with suppress(FileNotFoundError):
                self._earlier.rename(self._path)
