"""Read data/prepared/split.csv: which photo is in which split, and why others are excluded."""

from pipeline.core import SPLITS
from pipeline.core.class_names import natural_key
from pipeline.core.files import require_file
from pipeline.core.paths import SPLIT_TABLE

import pandas as pd

MAX_NAMED = 6  # classes; with more, a text does not name each of them


def read_split_table() -> pd.DataFrame:
    """One row per photo, each split in its file's row order; all cells are text. Raises UserError if missing."""
    return pd.read_csv(require_file(SPLIT_TABLE), keep_default_na=False, dtype=str)


def describe_classes(table: pd.DataFrame) -> str:
    """Say how many photos of each class the splits hold, for people."""
    held = table[table["split"] != ""]
    classes = sorted(set(held["label"]), key=natural_key)
    counts = pd.crosstab(held["split"], held["label"]).reindex(index=list(SPLITS), columns=classes, fill_value=0)
    if (counts.nunique(axis=1) == 1).all():
        names = " and ".join(counts) if len(counts.columns) == 2 else f"each of the {len(counts.columns)} classes"
        return f"each split has equally many photos of {names}"
    return "; ".join(f"{split}: {_describe_counts(row)}" for split, row in counts.iterrows())


def _describe_counts(counts: pd.Series) -> str:
    if len(counts) <= MAX_NAMED:
        return ", ".join(f"{count:,} {name}" for name, count in counts.items())
    return f"{counts.min():,} to {counts.max():,} photos of each of the {len(counts)} classes"
