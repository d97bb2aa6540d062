"""Compare and sort the names of classes and splits."""

import re
import unicodedata
from functools import lru_cache

NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
WHOLE_NUMBERS = re.compile(r"(?<![\d.])\d+")  # not decimals, which must not be padded: 0.25 is less than 0.5
SEPARATORS = re.compile(r"(?!^-\d)[\s_-]+")  # but not the minus of -1
MAX_DIGITS = 20  # of a whole number that is sorted by value


@lru_cache(maxsize=4096)
def normal_form(name: str) -> str:
    """A form in which all spellings of a name are equal.

    It ignores case (Straße, STRASSE), whether a space, `_` or `-` separates words, how letters are composed and how
    wide they are (Unicode's NFKC), and invisible characters.
    """
    folded = name.casefold() if name.isascii() else _fold(name)
    return SEPARATORS.sub(" ", folded.strip()).strip() or name


def natural_key(name: str) -> tuple[bool, float | str, str]:
    """A sort key: numbers first, by value; then other names by character, but `level 2` before `level 10`."""
    if NUMBER.fullmatch(name):
        return False, float(name), name
    return True, WHOLE_NUMBERS.sub(lambda digits: digits[0].zfill(MAX_DIGITS), name), name


def _fold(name: str) -> str:
    visible = "".join(character for character in name if unicodedata.category(character) != "Cf")
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", visible).casefold())
    return folded.replace("i\u0307", "i").replace("\u0131", "i")  # the lower-case forms of Turkish İ and I
