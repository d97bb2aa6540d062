"""What its user has found wrong among the photos: a text file that says which to leave out and which to relabel."""

import difflib
import re
from pathlib import Path

from catsdogs import CLASSES
from catsdogs.errors import UserError
from catsdogs.photos import Photo

CORRECTIONS = Path("data/corrections.txt")
LEAVE_OUT = "leave out"
LINE = re.compile(rf"(.+?)\s*:\s*({'|'.join([LEAVE_OUT, *CLASSES])})\s*(#.*)?")


def correct(photos: list[Photo]) -> None:
    """Leave out and relabel photos as data/corrections.txt says: a line is `cat.0.jpg: leave out` or `cat.1.jpg: dog`.

    Raises UserError, naming the line, where it is neither, names no photo, or contradicts another.
    """
    by_name = {photo.name: photo for photo in photos}
    lines: dict[str, tuple[str, int]] = {}  # for each photo its correction, and the number of the line
    for number, line in enumerate(_read().splitlines(), start=1):
        if not line.strip() or line.strip().startswith("#"):
            continue
        where = f"{CORRECTIONS}, line {number}"
        parts = LINE.fullmatch(line.strip())
        if not parts:
            raise UserError(
                f"{where}: is {line.strip()!r}; expected a photo's name, a colon, and leave out, cat or dog: "
                f"cat.0.jpg: {LEAVE_OUT}"
            )
        name, correction = parts[1], parts[2]
        if name not in by_name:
            similar = " or ".join(difflib.get_close_matches(name, by_name)) or next(iter(by_name))
            raise UserError(f"{where}: there is no photo {name}; expected a name as in split.csv, such as {similar}")
        before, earlier = lines.setdefault(name, (correction, number))
        if before != correction:
            raise UserError(f"{where}: {name}: {correction}; line {earlier} says {before}: delete one of the two")
    for name, (correction, _) in lines.items():
        photo = by_name[name]
        if correction == LEAVE_OUT:
            photo.left_out = f"named in {CORRECTIONS}"
        elif photo.label != CLASSES.index(correction):
            photo.relabelled_from = "neither" if photo.label is None else CLASSES[photo.label]
            photo.label = CLASSES.index(correction)


def _read() -> str:
    try:
        return CORRECTIONS.read_text(encoding="utf-8-sig")  # some editors put a mark before the first letter
    except FileNotFoundError:
        raise UserError(f"there is no {CORRECTIONS}; make it anew, empty if no photo is to be corrected") from None
    except UnicodeDecodeError:
        raise UserError(f"{CORRECTIONS}: is not text in UTF-8; save it as such") from None
