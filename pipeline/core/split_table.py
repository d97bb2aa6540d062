"""Read data/prepared/split.csv: which photo is in which split, and why others are excluded."""

from pipeline.core import CLASSES, SPLITS
from pipeline.core.files import require_file
from pipeline.core.paths import SPLIT_TABLE

import pandas as pd


def read_split_table() -> pd.DataFrame:
    """One row per photo, each split in its file's row order; empty cells are "". Raises UserError if missing."""
    return pd.read_csv(require_file(SPLIT_TABLE), keep_default_na=False)


def describe_classes(table: pd.DataFrame) -> str:
    """Say how many photos of each class the splits hold, for people."""
    held = table[table["split"] != ""]
    counts = pd.crosstab(held["split"], held["label"]).reindex(index=list(SPLITS), columns=list(CLASSES), fill_value=0)
    if (counts.nunique(axis=1) == 1).all():
        return "each split is half cats and half dogs"
    return "; ".join(
        f"{split}: " + ", ".join(f"{row[name]:,} {name}s" for name in CLASSES) for split, row in counts.iterrows()
    )
