"""Labels and splits from a table, as spreadsheets and labelling tools write them.

Its columns are photo, label and perhaps split. Instead of label it may have a column of 0 and 1 for each class.
"""

import codecs
import csv
import io
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from pipeline.core.class_names import normal_form
from pipeline.core.errors import UserError, list_some
from pipeline.core.sources import describe_missing_labels
from pipeline.photos.source import NAMED, Photo

COLUMNS = {  # our names, and what others call them
    "photo": ("photo", "image", "file", "filename", "file_name", "path", "image_id", "id", "name"),
    "label": ("label", "class", "category", "target", "species", "choice"),
    "split": ("split", "set", "subset", "partition", "fold"),
}
YES, NO = ("1", "1.0", "true"), ("0", "0.0", "false")  # in the column of a class
DELIMITERS = ",;\t"
DELIMITER_LINE = re.compile(r'"?sep=(.)"?\s*')  # the first line of some files for Excel
LARGEST_CELL = 2**31 - 1  # characters; csv's own limit is 131,072
# Label Studio's paths of cat.jpg: /data/upload/3/1a2b3c4d-cat.jpg and /data/local-files/?d=cat.jpg
LABEL_STUDIO = re.compile(r".*/(?:upload/\d+/[0-9a-f]{8}-|local-files/\?d=)(.+)")


@dataclass(frozen=True)
class Record:
    """The cells of a row, stripped."""

    line: int  # its first line; a quoted cell may span several
    cells: list[str]


@dataclass(frozen=True)
class Columns:
    """The columns of a table: their names, and the places of those that are read."""

    names: list[str]
    ours: dict[str, int]  # by their names in COLUMNS
    classes: list[int]  # columns of 0 and 1; empty if there is a label column


@dataclass(frozen=True)
class Row:
    """What a row says about a photo."""

    line: int
    photo: str
    label: str
    split: str
    swallowed: list[str]  # what lines inside its quoted cells would name as photos, if they were rows


def apply_table(photos: list[Photo], table: Path) -> None:
    """Give photos the labels and splits that the table has for them.

    A photo is named by its path in the source, the end of it, or a longer path that ends with it, with or without the
    suffix. A table without rows changes nothing; photos that are not in a table with rows keep what their folders say.
    Raises UserError, which names the line, for a table that cannot be read or lacks a column, and for a photo that does
    not exist, is not unique, or does not have exactly one label.
    """
    rows = _read(table)
    names = PhotoNames(photos if rows else [])
    first_rows: dict[str, Row] = {}  # of each photo, by its path
    missing: list[str] = []
    for row in rows:
        where = f"{table}, line {row.line}"
        if swallowed := next(filter(names.find, row.swallowed), None):
            raise UserError(
                f"{where}: a quoted cell contains the line of {swallowed}; close the quotation marks before it"
            )
        found = names.find(row.photo)
        if not found:
            missing.append(row.photo)
            continue
        if len(found) > 1:
            raise UserError(f"{where}: {row.photo} could be {found[0].path} or {found[1].path}; name it by its path")
        first = first_rows.setdefault(found[0].path, row)
        for what in ("label", "split"):
            if normal_form(one := getattr(first, what)) != normal_form(other := getattr(row, what)):
                raise UserError(
                    f"{table}: the {what} of {row.photo} is {one!r} in line {first.line}, but {other!r} in line "
                    f"{row.line}; delete one of the two"
                )
        found[0].given_label, found[0].given_split, found[0].given_in = row.label, row.split, where
    if missing:
        examples = ", ".join(missing[:NAMED])
        raise UserError(
            f"{table}: {len(missing)} of {len(rows)} photos are not in the source, such as {examples}; expected names "
            f"such as {photos[0].path}"
        )


class PhotoNames:
    """Finds the photos that a name in a table or from a labelling tool may mean."""

    def __init__(self, photos: list[Photo]) -> None:
        self._by_path: dict[str, list[Photo]] = {}  # with and without the suffix
        self._by_end: dict[str, list[Photo]] = {}  # each end of these
        for photo in photos:
            without = photo.path.removesuffix(PurePosixPath(photo.path).suffix)
            for name in {_normalised(photo.path), _normalised(without)}:  # which may end with what looks like a suffix
                self._by_path.setdefault(name, []).append(photo)
                for end in _ends(name):
                    self._by_end.setdefault(end, []).append(photo)

    def find(self, name: str) -> list[Photo]:
        """The photos whose path ends with `name` or is the end of it; only one if `name` is exactly its path or name.

        `name` may also be a URL, with %20 for a space and the like.
        """
        if label_studio := LABEL_STUDIO.fullmatch(name):
            name = unquote(label_studio[1])
        elif name.startswith(("https://", "http://")):
            name = unquote(name)
        ends = _ends(_normalised(name))
        found = self._by_end.get(next(ends)) or next(filter(None, map(self._by_path.get, ends)), [])
        for same in ("path", "name"):
            if exactly := [photo for photo in found if getattr(photo, same) == name]:
                return exactly
        return found


def _ends(path: str) -> Iterator[str]:
    """`a/b/1.jpg`, `b/1.jpg` and `1.jpg`"""
    yield path
    while "/" in path:
        path = path.partition("/")[2]
        yield path


def _normalised(name: str) -> str:
    """The name as on every system: with slashes, in Unicode's composed form, and its suffix in lower case."""
    name = unicodedata.normalize("NFC", name.replace("\\", "/")).removeprefix("./")
    suffix = PurePosixPath(name).suffix
    return name.removesuffix(suffix) + suffix.lower()


def read_cells(table: Path) -> tuple[Columns, list[Record], str]:
    """The table's columns, rows and delimiter. Raises UserError for wrong columns, or if it is no table."""
    text = _decode(table)
    delimiter = _find_delimiter(text)
    header, *records = list(_records(table, text, delimiter)) or [Record(1, [])]
    return _find_columns(table, header, records), records, delimiter


def _read(table: Path) -> list[Row]:
    """The rows of the table. Raises UserError for wrong columns, and for a row without a photo or a single label."""
    columns, records, delimiter = read_cells(table)
    rows = [_read_row(f"{table}, line {record.line}", record, columns, delimiter) for record in records]
    _require_single(table, rows)
    return rows


def _read_row(where: str, record: Record, columns: Columns, delimiter: str) -> Row:
    """What the cells of a row say. Raises UserError, which starts with `where`, without a photo or a single label."""
    if any(record.cells[len(columns.names) :]):
        raise UserError(
            f"{where}: {len(record.cells)} cells, but {len(columns.names)} columns; expected one label for a photo, "
            f"and quotation marks around text with {delimiter!r} in it"
        )
    cells = record.cells + [""] * len(columns.names)  # trailing empty cells may be missing
    photo, label, split = (cells[columns.ours[name]] if name in columns.ours else "" for name in COLUMNS)
    if not photo:
        raise UserError(f"{where}: no photo is named; add its name, or delete the line")
    labels = [columns.names[place] for place in columns.classes if cells[place].lower() in YES] or [label]
    if not labels[0]:
        raise UserError(f"{where}: {photo} has no label; add it, or delete the line")
    if len(labels) > 1:
        raise UserError(f"{where}: {photo} is {' and '.join(labels)}; expected one label")
    return Row(record.line, photo, labels[0], split, _swallowed(cells, columns, delimiter))


def _swallowed(cells: list[str], columns: Columns, delimiter: str) -> list[str]:
    """What the lines inside quoted cells, from their second on, would name as photos if they were rows."""
    lines = [line.split(delimiter) for cell in cells for line in cell.splitlines()[1:]]
    last = max(*columns.ours.values(), *columns.classes)
    return [line[columns.ours["photo"]] for line in lines if len(line) > last]


def _find_columns(table: Path, header: Record, records: list[Record]) -> Columns:
    """Find our COLUMNS and, if none of them is label, those of the classes: columns of only 0 and 1.

    Raises UserError if the photo's column is missing, or that of the label.
    """
    names = [name.lower() for name in header.cells]
    places = {
        ours: names.index(known[0])
        for ours, theirs in COLUMNS.items()
        if (known := [name for name in theirs if name in names])
    }
    others = [place for place in range(len(names)) if place not in places.values()]
    classes = [
        n for n in others if all(cell.lower() in YES + NO for record in records for cell in record.cells[n : n + 1])
    ]
    if "label" in places or len(classes) < 2:
        classes = []
    if header.cells and not ("photo" in places and ("label" in places or classes)):
        found = list_some([name[:40] for name in header.cells], most=12)
        raise UserError(
            f"{table}, line {header.line}: columns are {found}; expected photo, label and perhaps split, or photo and "
            "a column of 0 and 1 for each class"
        )
    return Columns(header.cells, places, classes)


def _require_single(table: Path, rows: list[Row]) -> None:
    """Raise UserError for a cell with several labels: on several lines, as a list, or separated by commas."""
    labels = {normal_form(row.label) for row in rows}
    for row in rows:
        parts = [normal_form(part) for part in re.split(r"[,;|]", row.label)]
        if "\n" in row.label or row.label.startswith(("[", "{")) or (len(parts) > 1 and labels.intersection(parts)):
            raise UserError(f"{table}, line {row.line}: the label of {row.photo} is {row.label!r}; expected one label")


def _records(table: Path, text: str, delimiter: str) -> Iterator[Record]:
    """The header and the rows of the table, without blank lines. Raises UserError for unclosed quotation marks."""
    csv.field_size_limit(LARGEST_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    before = 0  # lines read
    try:
        for cells in reader:
            is_for_excel = before == 0 and DELIMITER_LINE.fullmatch(delimiter.join(cells))
            if any(map(str.strip, cells)) and not is_for_excel:
                yield Record(before + 1, [cell.strip() for cell in cells])
            before = reader.line_num
    except csv.Error:
        raise UserError(
            f"{table}, line {before + 1}: a quotation mark is not closed, or text follows the closing one; close it, "
            "or remove it"
        ) from None


def _find_delimiter(text: str) -> str:
    """The delimiter that the first line names for Excel (`sep=;`), or else the most frequent one in it."""
    first = text.lstrip().partition("\n")[0]
    named = DELIMITER_LINE.fullmatch(first)
    return named[1] if named else max(DELIMITERS, key=first.count)


def _decode(table: Path) -> str:
    """The text of the table. Raises UserError if it does not exist or is not text."""
    try:
        content = table.read_bytes()
    except FileNotFoundError:
        raise UserError(describe_missing_labels(table)) from None
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # Excel's "Unicode text"
    try:
        text = content.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise UserError(f"{table} is not UTF-8 text; save it as CSV in UTF-8")
    if text.lstrip().startswith(("{", "[")):
        raise UserError(f"{table} is JSON; expected CSV with columns photo, label and perhaps split")
    return text
