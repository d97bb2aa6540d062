"""Tell a photo's label from its folders or its file name."""

import re
from pathlib import PurePosixPath

from pipeline.core import CLASSES

# cat.0.jpg, CAT.1.JPG, cat (1).jpg, cat_1.jpg, cat-1.jpg, cat1.jpg
NUMBERED = re.compile(rf"({'|'.join(CLASSES)})s?[ ._-]*\(?\d+\)?", re.IGNORECASE)


def label_of(path: str) -> tuple[int | None, bool]:
    """A photo's label, 0 (cat), 1 (dog) or None, and whether its file name says another one.

    The innermost folder that names a class decides: `cats/siamese/1.jpg`, `Cat/1.jpg`. Moving a photo to another folder
    is how labels are repaired, so the folder wins over the file's name, which counts where no folder names a class.
    """
    file = PurePosixPath(path)
    by_folder = next(
        (label for folder in reversed(file.parts[:-1]) if (label := class_named(folder)) is not None), None
    )
    numbered = NUMBERED.fullmatch(file.stem)
    by_name = class_named(numbered[1]) if numbered else None
    if by_folder is None:
        return by_name, False
    return by_folder, by_name not in (None, by_folder)


def class_named(text: str) -> int | None:
    """The label that a text names, such as cat, Cats or DOG; None if it is no class."""
    name = text.strip().lower().removesuffix("s")
    return CLASSES.index(name) if name in CLASSES else None
