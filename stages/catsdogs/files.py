"""Writing results so that they appear whole or not at all."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREPARED = Path("data/prepared")  # what `prepare` hands on


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write to; rename it to `path` on success, delete it on any exception."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: dict) -> None:
    """Write `content` as indented JSON, its keys in the order given."""
    with written_whole(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n")
