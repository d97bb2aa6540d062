"""The user's corrections of the photos: data/corrections.txt says which to exclude and which to relabel."""

import difflib
import re
from collections.abc import Sequence

from pipeline.core.errors import UserError, list_some
from pipeline.core.paths import CORRECTIONS
from pipeline.photos.source import Photo

LEAVE_OUT = "leave out"


def correct(photos: list[Photo], classes: Sequence[str]) -> None:
    """Exclude and relabel photos as data/corrections.txt says, in lines such as `a.jpg: leave out` or `b.jpg: dog`.

    Raises UserError, naming the line, if it is malformed, its photo does not exist, or it contradicts another line.
    """
    choices = "|".join(map(re.escape, [LEAVE_OUT, *classes]))
    line_format = re.compile(rf"(.+?)\s*:\s*({choices})\s*(#.*)?")
    by_name = {photo.name: photo for photo in photos}
    lines: dict[str, tuple[str, int]] = {}  # each photo's correction and line number
    for number, line in enumerate(_read().splitlines(), start=1):
        if not line.strip() or line.strip().startswith("#"):
            continue
        where = f"{CORRECTIONS}, line {number}"
        parts = line_format.fullmatch(line.strip())
        if not parts:
            raise UserError(
                f"{where}: {line.strip()!r} is not a correction; expected a photo's name, a colon, and {LEAVE_OUT} or "
                f"a class ({list_some(classes)}), such as {photos[0].name}: {LEAVE_OUT}"
            )
        name, correction = parts[1], parts[2]
        if name not in by_name:
            similar = " or ".join(difflib.get_close_matches(name, by_name)) or next(iter(by_name))
            raise UserError(f"{where}: there is no photo {name}; expected a name as in split.csv, such as {similar}")
        earlier_correction, earlier_number = lines.setdefault(name, (correction, number))
        if earlier_correction != correction:
            raise UserError(
                f"{where}: {name} is {correction!r} here, but {earlier_correction!r} in line {earlier_number}; "
                "delete one of the two"
            )
    for name, (correction, _) in lines.items():
        photo = by_name[name]
        if correction == LEAVE_OUT:
            photo.excluded = f"named in {CORRECTIONS}"
        elif photo.label != (label := classes.index(correction)):
            photo.relabelled_from = "no class" if photo.label is None else classes[photo.label]
            photo.label = label


def _read() -> str:
    try:
        return CORRECTIONS.read_text(encoding="utf-8-sig")  # some editors write a byte order mark
    except FileNotFoundError:
        raise UserError(f"{CORRECTIONS} does not exist; create it, empty if there is nothing to correct") from None
    except UnicodeDecodeError:
        raise UserError(f"{CORRECTIONS} is not UTF-8 text; save it as UTF-8") from None
