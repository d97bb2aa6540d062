"""Read data/prepared/split.csv: which photo is in which split, and why others are excluded."""

from pipeline.core.files import require_file
from pipeline.core.paths import SPLIT_TABLE

import pandas as pd


def read_split_table() -> pd.DataFrame:
    """One row per photo, each split in its file's row order; empty cells are "". Raises UserError if missing."""
    return pd.read_csv(require_file(SPLIT_TABLE), keep_default_na=False)
