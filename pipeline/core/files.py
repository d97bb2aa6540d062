"""Read results, and write them atomically: a file is never left half-written."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.core.errors import UserError


@contextmanager
def atomic_write() -> Iterator[Callable[[Path], Path]]:
    """Yield a function that maps a result's path to a temporary path next to it, creating the folder if needed.

    On success all temporary files are renamed to their results' paths; on any exception they are deleted. A killed
    process leaves them behind; git and DVC ignore them, and the next one that writes the same results replaces them.
    """
    partials: dict[Path, Path] = {}

    def write_to(path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        partials[path] = partial_of(path)
        return partials[path]

    try:
        yield write_to
        for path, partial in partials.items():
            partial.replace(path)
    except OSError as error:
        if error.errno and not error.filename:  # a full disk: the error does not name the file
            error.filename = ", ".join(sorted({str(path.parent) for path in partials})) or None
        raise
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)


def partial_of(path: Path) -> Path:
    """Where `atomic_write` writes a result until it is complete."""
    return path.with_name(f"{path.name}.partial")


def require_file(path: Path) -> Path:
    """Return `path`, a stage's result. Raises UserError if it does not exist."""
    if not path.exists():
        raise UserError(f"{path} does not exist; run `dvc repro` to create it")
    return path


def require_files(*paths: Path) -> None:
    """Raise UserError unless all of these results exist."""
    for path in paths:
        require_file(path)


def read_json(path: Path) -> dict:
    """Return the JSON result at `path`. Raises UserError if it is missing or not valid JSON."""
    try:
        return json.loads(require_file(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); run `dvc repro` to restore it") from None


def write_json(path: Path, content: dict) -> None:
    """Write `content` as indented JSON, keeping the order of its keys."""
    path.write_text(json.dumps(content, indent=2) + "\n")
