"""The user's corrections of the photos: data/corrections.txt says which to exclude and which to relabel."""

import difflib
import re
import unicodedata
from collections.abc import Sequence

from pipeline.core.class_names import normal_form
from pipeline.core.errors import UserError, list_some
from pipeline.core.paths import CORRECTIONS
from pipeline.photos.labels import ClassNames
from pipeline.photos.source import Photo

LEAVE_OUT = "leave out"


def correct(photos: list[Photo], classes: Sequence[str]) -> None:
    """Exclude and relabel photos as data/corrections.txt says, in lines such as `a.jpg: leave out` or `b.jpg: dog`.

    Raises UserError, naming the line, if it is malformed, its photo does not exist, or it contradicts another line.
    """
    names = ClassNames(classes)
    by_name = {photo.name: photo for photo in photos}
    by_composed_name = {_composed(name): photo for name, photo in by_name.items()}
    lines: dict[Photo, tuple[str, int]] = {}  # each photo's correction and line number
    for number, line in enumerate(_read().splitlines(), start=1):
        if not line.strip() or line.strip().startswith("#"):
            continue
        where = f"{CORRECTIONS}, line {number}"
        parts = _parse(line, names)
        if not parts:
            raise UserError(
                f"{where}: {line.strip()!r} is not a correction; expected a photo's name, a colon, and {LEAVE_OUT} or "
                f"a class ({list_some(classes)}), such as {photos[0].name}: {LEAVE_OUT}"
            )
        name, label = parts
        photo = by_name.get(name) or by_composed_name.get(_composed(name))
        if not photo:
            similar = " or ".join(difflib.get_close_matches(name, by_name)) or next(iter(by_name))
            raise UserError(f"{where}: there is no photo {name}; expected a name as in split.csv, such as {similar}")
        correction = LEAVE_OUT if label is None else classes[label]
        earlier_correction, earlier_number = lines.setdefault(photo, (correction, number))
        if earlier_correction != correction:
            raise UserError(
                f"{where}: {name} is {correction!r} here, but {earlier_correction!r} in line {earlier_number}; "
                "delete one of the two"
            )
        if label is None:
            photo.excluded = f"named in {CORRECTIONS}"
        elif photo.label != label:
            photo.relabelled_from = "no class" if photo.label is None else classes[photo.label]
            photo.label = label


def _parse(line: str, names: ClassNames) -> tuple[str, int | None] | None:
    """The photo of a correction, and its label, or None to leave it out; None if the line is not a correction.

    Photos and classes may contain colons, and classes may contain a #.
    """
    for colon in re.finditer(":", line):
        text = line[colon.end() :]
        for end in [len(text), *(mark.start() for mark in re.finditer("#", text))]:
            label = names.label(text[:end])
            if label is not None or normal_form(text[:end]) == LEAVE_OUT:
                return line[: colon.start()].strip(), label
    return None


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _read() -> str:
    try:
        return CORRECTIONS.read_text(encoding="utf-8-sig")  # some editors write a byte order mark
    except FileNotFoundError:
        raise UserError(f"{CORRECTIONS} does not exist; create it, empty if there is nothing to correct") from None
    except UnicodeDecodeError:
        raise UserError(f"{CORRECTIONS} is not UTF-8 text; save it as UTF-8") from None
