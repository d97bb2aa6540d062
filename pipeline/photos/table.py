"""Labels and splits from a table, as spreadsheets write them: columns photo, label and perhaps split."""

import csv
from pathlib import Path, PurePosixPath

from pipeline.core.errors import UserError
from pipeline.photos.source import NAMED, Photo

COLUMNS = {  # our names, and what others call them
    "photo": ("photo", "image", "file", "filename", "file_name", "path", "image_id", "id", "name"),
    "label": ("label", "class", "category", "target", "species"),
    "split": ("split", "set", "subset", "partition", "fold"),
}


def apply_table(photos: list[Photo], table: Path) -> None:
    """Give photos the labels and splits that the table has for them.

    A photo is named by its path in the source, or the end of it, with or without the suffix. A table without rows
    changes nothing; photos that are not in a table with rows keep what their folders say. Raises UserError for a table
    that cannot be read, lacks a column, or has a photo that does not exist, is not unique or has no label.
    """
    rows = _read(table)
    by_name = _names(photos) if rows else {}
    missing: list[str] = []
    for line, row in rows:
        name = row["photo"].replace("\\", "/").strip().removeprefix("./")
        found = by_name.get(name, [])
        if not found:
            missing.append(name)
            continue
        if len(found) > 1:
            raise UserError(
                f"{table}, line {line}: {name} could be {found[0].path} or {found[1].path}; name it by its path"
            )
        if not (label := row["label"].strip()):
            raise UserError(f"{table}, line {line}: {name} has no label; add it, or delete the line")
        found[0].given_label, found[0].given_in = label, f"{table}, line {line}"
        found[0].given_split = row.get("split", "").strip()
    if missing:
        examples = ", ".join(missing[:NAMED])
        raise UserError(
            f"{table}: {len(missing)} of {len(rows)} photos are not in the source, such as {examples}; expected names "
            f"such as {photos[0].path}"
        )


def _read(table: Path) -> list[tuple[int, dict[str, str]]]:
    """The rows that name a photo, by our column names, each with the number of its line."""
    try:
        text = table.read_text(encoding="utf-8-sig")  # spreadsheets put a mark before the first letter
    except FileNotFoundError:
        raise UserError(f"{table} does not exist; create it, or set prepare.labels to another table") from None
    except UnicodeDecodeError:
        raise UserError(f"{table} is not UTF-8 text; save it as CSV in UTF-8") from None
    lines = text.splitlines()
    if not any(line.strip() for line in lines):
        return []
    delimiter = max(",;\t", key=lines[0].count)
    reader = csv.reader(lines, delimiter=delimiter)
    header = [name.strip().lower() for name in next(reader)]
    columns = {
        ours: header.index(theirs[0])
        for ours, names in COLUMNS.items()
        if (theirs := [name for name in names if name in header])
    }
    if not {"photo", "label"} <= columns.keys():
        raise UserError(f"{table}, line 1: columns are {', '.join(header)}; expected photo, label and perhaps split")
    found = []
    for row in reader:
        cells = {ours: row[place] if place < len(row) else "" for ours, place in columns.items()}
        if cells["photo"].strip():
            found.append((reader.line_num, cells))
    return found


def _names(photos: list[Photo]) -> dict[str, list[Photo]]:
    """Every name that a table may give a photo: each end of its path, with and without the suffix."""
    names: dict[str, list[Photo]] = {}
    for photo in photos:
        parts = PurePosixPath(photo.path).parts
        for first in range(len(parts)):
            end = PurePosixPath(*parts[first:])
            for name in {str(end), str(end.with_suffix(""))}:
                names.setdefault(name, []).append(photo)
    return names
