"""Tell the label of each photo: from the table, its container, its folders or its file name."""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from pipeline.core.errors import UserError, list_some
from pipeline.core.params import AUTO, Split
from pipeline.photos.source import Photo

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
LOOKS_LIKE_SPLIT = re.compile(
    rf"({'|'.join(SPLIT_WORDS)})([ ._-]*\d.*|[ ._-](set|split|data|images|photos))?", re.IGNORECASE
)


class ClassNames:
    """Finds the class that a text names: in any case, singular or plural, with `_` or `-` for a space."""

    def __init__(self, classes: Sequence[str]) -> None:
        self._labels = {_normalised(name): label for label, name in enumerate(classes)}
        for name, label in [*self._labels.items()]:
            self._labels.setdefault(f"{name}s", label)
            self._labels.setdefault(name.removesuffix("s"), label)
        names = sorted(map(re.escape, self._labels), key=len, reverse=True)
        # cat.0.jpg, CAT.1.JPG, cat (1).jpg, cat_1.jpg, cat-1.jpg, cat1.jpg
        self._numbered = re.compile(rf"({'|'.join(names)})((?<=\D)[ .]*|[ .]+)\(?\d+\)?")

    def label(self, text: str) -> int | None:
        """The label that a text names; None if it is no class."""
        return self._labels.get(_normalised(text))

    def label_of_file(self, path: str) -> tuple[int | None, bool]:
        """A photo's label by its path, and whether its file name says another one.

        The innermost folder that names a class decides: `cats/siamese/1.jpg`, `Cat/1.jpg`. Moving a photo to another
        folder is how labels are repaired, so the folder wins over the file name, which counts if no folder does.
        """
        file = PurePosixPath(path)
        labels = (self.label(folder) for folder in reversed(file.parts[:-1]))
        by_folder = next((label for label in labels if label is not None), None)
        numbered = self._numbered.fullmatch(_normalised(file.stem))
        by_name = self._labels[numbered[1]] if numbered else None
        if by_folder is None:
            return by_name, False
        return by_folder, by_name not in (None, by_folder)


def label_photos(photos: list[Photo], classes: tuple[str, ...] | str, split: Split) -> tuple[str, ...]:
    """Set each photo's label, an index into the classes, and return the classes.

    What the table or the container says wins over folders and file names. If `classes` is `auto`, the classes are the
    labels that these give and the names of the folders, sorted. Raises UserError for a label that is no class, and if
    `auto` finds fewer than two classes.
    """
    if classes == AUTO:
        classes = _find_classes(photos, split)
    else:
        names = ClassNames(classes)
        for photo in photos:
            if photo.given_label:
                photo.label = _given_label(photo, names, classes)
            else:
                photo.label, photo.misnamed = names.label_of_file(photo.path)
    for photo in photos:
        photo.found_label = photo.label
    return classes


def split_named(folder: str) -> str | None:
    """Return the split that a folder is named after, such as validation for `val`, or None."""
    match = LOOKS_LIKE_SPLIT.fullmatch(folder)
    return SPLIT_WORDS[match[1].lower()] if match else None


def _given_label(photo: Photo, names: ClassNames, classes: Sequence[str]) -> int | None:
    """The label that the table or the container gives. Raises UserError if the table's is no class."""
    label = names.label(photo.given_label)
    if label is None and photo.given_label.isdecimal() and not photo.given_in:  # a container's index of a class
        label = int(photo.given_label) if int(photo.given_label) < len(classes) else None
    if label is None and photo.given_in:
        raise UserError(
            f"{photo.given_in}: label is {photo.given_label!r}; expected one of {list_some(classes)}, or set classes "
            "in params.yaml"
        )
    return label


def _find_classes(photos: list[Photo], split: Split) -> tuple[str, ...]:
    """Label the photos by what is given, or by their first folder that is no split, and return the classes."""
    split_names = {value for _, value in split if isinstance(value, str)}

    def name_of(photo: Photo) -> str | None:
        folders = PurePosixPath(photo.name).parts[:-1]
        own = (folder for folder in folders if folder not in split_names and not split_named(folder))
        return photo.given_label or next(own, None)

    names = [name_of(photo) for photo in photos]
    found = {name for name in names if name}
    if len(found) < 2:
        raise UserError(
            f"classes in params.yaml is auto, but the photos are in {len(found)} folders that can name a class"
            f"{''.join(f' ({name})' for name in found)}; put each class into a folder of its own, list the photos in "
            "prepare.labels, or set classes to a list of names"
        )
    classes = tuple(sorted(found))
    numbers = {name: number for number, name in enumerate(classes)}
    for photo, name in zip(photos, names, strict=True):
        photo.label = numbers.get(name)
    return classes


def _normalised(text: str) -> str:
    return re.sub(r"[ _-]+", " ", text).strip().lower()
