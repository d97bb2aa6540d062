"""Read data/prepared/split.csv: which photo is in which split, and why others are excluded."""

from pathlib import Path
from typing import BinaryIO

from pipeline.core import SPLITS
from pipeline.core.class_names import natural_key
from pipeline.core.paths import SPLIT_TABLE
from pipeline.core.read_table import read_table

import pandas as pd

MAX_NAMED = 6  # classes; with more, a text does not name each of them


def read_split_table(file: Path | BinaryIO = SPLIT_TABLE, name: str = "") -> pd.DataFrame:
    """One row per photo, each split in its file's row order; all cells are text. Arguments and errors: read_table."""
    return read_table(file, ["photo", "label", "split", "sha256"], name)


def count_classes(table: pd.DataFrame, split: str) -> dict[str, int]:
    """The number of photos of each class in a split."""
    return table.loc[table["split"] == split, "label"].value_counts().to_dict()


def describe_classes(table: pd.DataFrame) -> str:
    """Say how many photos of each class the splits hold, for people."""
    held = table[table["split"] != ""]
    classes = sorted(set(held["label"]), key=natural_key)
    counts = pd.crosstab(held["split"], held["label"]).reindex(index=list(SPLITS), columns=classes, fill_value=0)
    if (counts.nunique(axis=1) == 1).all():
        names = " and ".join(classes) if len(classes) == 2 else f"each of the {len(classes)} classes"
        return f"each split has equally many photos of {names}"
    return "; ".join(f"{split}: {_describe_counts(row)}" for split, row in counts.iterrows())


def _describe_counts(counts: pd.Series) -> str:
    if len(counts) <= MAX_NAMED:
        return ", ".join(f"{count:,} {name}" for name, count in counts.items())
    return f"{counts.min():,} to {counts.max():,} photos of each of the {len(counts)} classes"
