"""Tell a photo's label from its file name or folder."""

import re
from pathlib import PurePosixPath

from pipeline.core import CLASSES


def label_of(path: str) -> int | None:
    """0 (cat) or 1 (dog), from a file name like Kaggle's `cat.0.jpg` or a folder like `Cat/` or `cats/`; else None."""
    file = PurePosixPath(path)
    kaggle = re.fullmatch(r"(cat|dog)\.\d+\.\w+", file.name)
    name = kaggle[1] if kaggle else file.parent.name.lower().removesuffix("s")
    return CLASSES.index(name) if name in CLASSES else None
