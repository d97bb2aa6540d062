"""Writing results so that each appears whole, and none where a stage fails."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from catsdogs.errors import UserError

PREPARED = Path("data/prepared")  # what `prepare` hands on


@contextmanager
def written_whole() -> Iterator[Callable[[Path], Path]]:
    """Give a function from a result's path to a path beside it to write to; its folder is made.

    On success all that were asked for get their own names, one right after the other; on any exception none does.
    """
    partials: dict[Path, Path] = {}

    def write_to(path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        partials[path] = path.with_name(f"{path.name}.partial")
        return partials[path]

    try:
        yield write_to
        for path, partial in partials.items():
            partial.replace(path)
    except OSError as error:
        if error.errno and not error.filename:  # a full disk names no file
            error.filename = ", ".join(sorted({str(path.parent) for path in partials})) or None
        raise
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)


def existing(path: Path) -> Path:
    """`path`, a result of a stage. Raises UserError where it is not there."""
    if not path.exists():
        raise UserError(f"there is no {path}; `dvc repro` writes it")
    return path


def read_json(path: Path) -> dict:
    """The result at `path`. Raises UserError where it is missing or broken."""
    try:
        return json.loads(existing(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: is not valid JSON ({error}); run `dvc repro` to restore it") from None


def write_json(path: Path, content: dict) -> None:
    """Write `content` as indented JSON, its keys in the order given."""
    path.write_text(json.dumps(content, indent=2) + "\n")
