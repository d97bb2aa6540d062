"""Compare and sort the names of classes and splits."""

import re
import unicodedata
from functools import lru_cache

NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
WHOLE_NUMBERS = re.compile(r"(?<![\d.])\d+")  # in a text; 0.25 is less than 0.5, so decimals are not padded
SEPARATORS = re.compile(r"(?!^-\d)[\s_-]+")  # but -1 is not 1
MOST_DIGITS = 20


@lru_cache(maxsize=4096)
def normal_form(name: str) -> str:
    """What two spellings of a name have in common: names are the same if this is equal.

    Case makes no difference (Straße, STRASSE), nor does which of space, `_` and `-` separates words, nor how a letter
    is composed or how wide it is (Unicode's NFKC), nor an invisible character.
    """
    folded = name.casefold() if name.isascii() else _fold(name)
    return SEPARATORS.sub(" ", folded.strip()).strip() or name


def natural_key(name: str) -> tuple[bool, float | str, str]:
    """For sorting: numbers by their value, before other names; those by character, but `level 2` before `level 10`."""
    if NUMBER.fullmatch(name):
        return False, float(name), name
    return True, WHOLE_NUMBERS.sub(lambda digits: digits[0].zfill(MOST_DIGITS), name), name


def _fold(name: str) -> str:
    visible = "".join(character for character in name if unicodedata.category(character) != "Cf")
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", visible).casefold())
    return folded.replace("i\u0307", "i").replace("\u0131", "i")  # Turkish: the small letters of İ and I
