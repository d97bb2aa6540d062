"""Find the label of each photo: from the table, its container, its folders or its file name."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath

from pipeline.core.class_names import natural_key, normal_form
from pipeline.core.errors import UserError, list_some
from pipeline.core.params import AUTO
from pipeline.core.sections.prepare import Split
from pipeline.photos.source import Photo, printable

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
LOOKS_LIKE_SPLIT = re.compile(rf"({'|'.join(SPLIT_WORDS)})([ .]*\d.*|[ .](set|split|data|images|photos))?")

Folder = tuple[str, ...]  # the names of the folders in its path


class ClassNames:
    """Finds the class that a text names, in any spelling (`normal_form`), singular or plural."""

    def __init__(self, classes: Sequence[str]) -> None:
        self._labels = {normal_form(name): label for label, name in enumerate(classes)}
        for name, label in [*self._labels.items()]:
            for either in _singular_and_plural(name):
                self._labels.setdefault(either, label)
        names = sorted(map(re.escape, self._labels), key=len, reverse=True)
        # cat.0.jpg, CAT.1.JPG, cat (1).jpg, cat_1.jpg, cat-1.jpg, cat1.jpg
        self._numbered = re.compile(rf"({'|'.join(names)})((?<=\D)[ .]*|[ .]+)\(?\d+\)?")

    def label(self, text: str) -> int | None:
        """The label that a text names; None if it names no class."""
        return self._labels.get(normal_form(text))

    def label_of_file(self, stem: str) -> int | None:
        """The label in a photo's name without its suffix, a class and a number; None if there is none."""
        numbered = self._numbered.fullmatch(normal_form(stem))
        return self._labels[numbered[1]] if numbered else None


class FolderRoles:
    """Tells folders of classes from folders of splits.

    A folder is a split if it is named like one, or in prepare.split. But it is a class if it is next to a folder with
    any other name and contains no class, such as `train` in `bus/ car/ train/`; that name is then a class wherever the
    folder contains none. `named_like_splits` are the names of such classes. Without `names`, the classes' names, every
    folder that is not named like a split may be a class.
    """

    def __init__(self, photos: Sequence[Photo], split: Split, names: ClassNames | None) -> None:
        self._split_names = {normal_form(value) for _, value in split if isinstance(value, str)}
        holders = {folder_of(photo) for photo in photos if not photo.given_label}
        folders = {folder[:depth] for folder in holders for depth in range(1, len(folder) + 1)}
        others = {folder for folder in folders if not self.is_like_split(folder[-1])}
        beside_others = {folder[:-1] for folder in others}
        classes = {folder for folder in others if names is None or names.label(folder[-1]) is not None}
        self._above_classes = {folder[:depth] for folder in classes for depth in range(len(folder))}
        self.named_like_splits = {
            normal_form(folder[-1]) for folder in folders - others - self._above_classes if folder[:-1] in beside_others
        }

    def is_like_split(self, name: str) -> bool:
        """Whether a folder is named like a split, or in prepare.split."""
        return normal_form(name) in self._split_names or split_named(name) is not None

    def has_classes(self, folder: Folder) -> bool:
        """Whether the folder contains, at any depth, a class that is not named like a split."""
        return folder in self._above_classes

    def classes_in(self, folder: Folder) -> list[int]:
        """The depths at which a path has a folder that may be a class; 0 is the outermost."""
        return [
            depth
            for depth, name in enumerate(folder)
            if not self.is_like_split(name)
            or (normal_form(name) in self.named_like_splits and not self.has_classes(folder[: depth + 1]))
        ]


def label_photos(
    photos: list[Photo], classes: tuple[str, ...] | str, split: Split
) -> tuple[tuple[str, ...], list[str]]:
    """Set each photo's label, an index into the classes; return the classes, and notes on how they were found.

    Labels from the table or the container take precedence over folders and file names. If `classes` is `auto`, the
    classes are these labels and the names of the folders, in natural order. Raises UserError for a label that is not a
    class, and if `auto` finds fewer than two classes.
    """
    notes: list[str] = []
    if classes == AUTO:
        classes, notes = _find_classes(photos, FolderRoles(photos, split, names=None))
    else:
        names = ClassNames(classes)
        roles = FolderRoles(photos, split, names)
        for photo in photos:
            if photo.given_label:
                photo.label = _given_label(photo, names, classes)
            else:
                _label_by_path(photo, names, roles)
    for photo in photos:
        photo.found_label = photo.label
    return classes, notes  # pyrefly: ignore[bad-return]


def split_named(name: str) -> str | None:
    """The split that a name from a folder or table means, such as validation for `Val`; None if there is none."""
    match = LOOKS_LIKE_SPLIT.fullmatch(normal_form(name))
    return SPLIT_WORDS[match[1]] if match else None


def folder_of(photo: Photo) -> Folder:
    """The folders of a photo's path in the source, outermost first."""
    return tuple(photo.path.split("/")[:-1])  # much faster than PurePosixPath, and called for each photo several times


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


def _label_by_path(photo: Photo, names: ClassNames, roles: FolderRoles) -> None:
    """Label a photo by the innermost folder that names a class, else by its file name.

    So moving a photo to another folder corrects its label. Folders named like a split come after all others, and after
    the file name too unless they are known to be classes: `train/car.0.jpg` is a car.
    """
    folder = folder_of(photo)
    by_name = names.label_of_file(PurePosixPath(photo.path).stem)
    depths = roles.classes_in(folder)
    for depth in sorted(depths, key=lambda depth: (roles.is_like_split(folder[depth]), -depth)):
        if (label := names.label(folder[depth])) is not None:
            photo.label, photo.class_depth = label, depth
            photo.misnamed = by_name not in (None, label)
            return
    photo.label = by_name
    if by_name is None and folder and not roles.has_classes(folder):
        photo.label = names.label(folder[-1])
        photo.class_depth = None if photo.label is None else len(folder) - 1


def _find_classes(photos: list[Photo], roles: FolderRoles) -> tuple[tuple[str, ...], list[str]]:
    """Label photos by their given label, or else by their first folder that may be a class.

    Returns what `label_photos` does. Spellings of one name are one class, named by the most frequent spelling.
    """
    spellings: dict[str, Counter[str]] = defaultdict(Counter)  # by singular normal form
    found: dict[Photo, str] = {}
    for photo in photos:
        name = photo.given_label
        if not name:
            folder = folder_of(photo)
            shared = len(folder) - len(PurePosixPath(photo.name).parts[:-1])  # the folders that contain all photos
            photo.class_depth = next((depth for depth in roles.classes_in(folder) if depth >= shared), None)
            name = "" if photo.class_depth is None else folder[photo.class_depth]
        if name:
            found[photo] = _singular_and_plural(normal_form(name))[0]
            spellings[found[photo]][printable(" ".join(unicodedata.normalize("NFC", name).split()))] += 1
    chosen = {common: max(sorted(names), key=names.__getitem__) for common, names in spellings.items()}
    classes = tuple(sorted(chosen.values(), key=natural_key))
    if len(classes) < 2:
        raise UserError(_describe_too_few(photos, classes, roles))
    for photo, common in found.items():
        photo.label = classes.index(chosen[common])
    return classes, [*_describe_spellings(spellings), *_describe_like_splits(classes, roles)]


def _describe_spellings(spellings: dict[str, Counter[str]]) -> list[str]:
    merged = [" and ".join(sorted(names)) for names in spellings.values() if len(names) > 1]
    if not merged:
        return []
    return [f"note: spellings of one name are one class: {list_some(merged, most=12)}; if that is wrong, rename one"]


def _describe_like_splits(classes: Sequence[str], roles: FolderRoles) -> list[str]:
    return [
        f"note: the folder {name} is a class, not a split, because it is next to other classes; if that is wrong, set "
        "classes in params.yaml to a list without it"
        for name in classes
        if normal_form(name) in roles.named_like_splits
    ]


def _describe_too_few(photos: list[Photo], classes: Sequence[str], roles: FolderRoles) -> str:
    named_like = {folder[-1] for photo in photos if (folder := folder_of(photo)) and roles.is_like_split(folder[-1])}
    innermost = {"".join(folder_of(photo)[-1:]) for photo in photos}
    found = f"{len(classes)} folder{'' if len(classes) == 1 else 's'} that can name a class"
    found += "".join(f" ({name})" for name in classes)
    if named_like:
        found += f", apart from names of splits ({list_some(sorted(named_like))})"
    elif not classes and len(innermost) == 1 and innermost != {""}:
        found = f"one folder, {innermost.pop()}"
    return (
        f"classes in params.yaml is auto, but the photos are in {found}; put each class into a folder of its own, list "
        "the photos in prepare.labels, or set classes to a list of names"
    )


def _singular_and_plural(name: str) -> tuple[str, ...]:
    """(`cat`, `cats`) for either; only the name itself if it does not form a plural with an s (`glass`, a letter)."""
    singular = name.removesuffix("s")
    return (name,) if len(singular) < 2 or singular.endswith("s") else (singular, f"{singular}s")
