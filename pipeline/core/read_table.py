"""Read the tables that stages wrote, as CSV."""

from collections.abc import Container, Sequence
from pathlib import Path
from typing import BinaryIO

from pipeline.core.errors import UserError, first_line
from pipeline.core.files import require_file

import pandas as pd

# Columns that are never numbers: a class or a photo may be named 1.
TEXT = ("network", "split", "photo", "label", "predicted", "class", "sha256", "excluded", "relabelled_from", "copy_of")


def read_table(file: Path | BinaryIO, columns: Sequence[str], name: str = "") -> pd.DataFrame:
    """A table that must have `columns`. Empty cells of text are "".

    `name` is that of a file without a path, for errors. Raises UserError if the file does not exist, is not a table, or
    lacks a column.
    """
    name = name or str(file)
    try:
        table = pd.read_csv(
            require_file(file) if isinstance(file, Path) else file,
            dtype={**dict.fromkeys(TEXT, str), "rejected": bool},
            keep_default_na=False,
        )
    except ValueError as error:
        raise UserError(f"{name} is not a table ({first_line(error)}); run `dvc repro` to restore it") from None
    require_columns(name, columns, table)
    return table


def require_columns(name: str, columns: Sequence[str], found: Container[str]) -> None:
    """Raise UserError unless all `columns` of a table are among those `found`."""
    for column in columns:
        if column not in found:
            raise UserError(
                f"{name} has no column {column}; another version of this pipeline wrote it; run `dvc repro` there"
            )
