"""Read the annotations that Label Studio exports, and merge them into the table of labels.

The formats are those of Label Studio 1.23: https://labelstud.io/guide/export
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.class_names import normal_form
from pipeline.core.errors import UserError, list_some
from pipeline.core.params import AUTO
from pipeline.photos.label_tasks import CHOICE
from pipeline.photos.labels import ClassNames
from pipeline.photos.source import NAMED, Photo
from pipeline.photos.table import COLUMNS, DELIMITERS, LARGEST_CELL, PhotoNames, read_cells

MOST_ERRORS = 5  # lines


@dataclass(frozen=True)
class Annotation:
    """What one person chose for one photo."""

    task: str  # its id
    photo: str  # its name or URL
    labels: list[str]  # none if the task was not labelled
    by: str


def read_export(file: Path) -> list[Annotation]:
    """The annotations in an export: JSON, JSON-MIN, CSV or TSV. Skipped tasks have none. Raises UserError."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{file} does not exist; expected an export of Label Studio") from None
    except UnicodeDecodeError:
        raise UserError(f"{file} is not text; expected an export of Label Studio as JSON, JSON-MIN or CSV") from None
    if text.lstrip().startswith(("[", "{")):
        records = _read_json(file, text)
        if any("annotations" in record for record in records):
            return [annotation for record in records for annotation in _from_task(file, record)]
    else:
        header = text.partition("\n")[0]
        csv.field_size_limit(LARGEST_CELL)
        try:
            records = list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if "\t" in header else ","))
        except csv.Error as error:
            raise UserError(f"{file} is not valid CSV ({error}); export it again") from None
    return list(_from_records(file, records))


def _read_json(file: Path, text: str) -> list[dict]:
    try:
        records = json.loads(text)
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON ({error}); export it again") from None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise UserError(f"{file} is not a list of tasks; expected an export of Label Studio as JSON, JSON-MIN or CSV")
    return records


def _from_task(file: Path, task: dict) -> Iterator[Annotation]:
    """The annotations of a task in the format JSON; predictions are not annotations."""
    number, photo = str(task.get("id")), _photo_of(file, task.get("data") or {})
    submitted = [one for one in task.get("annotations") or [] if not one.get("was_cancelled")]
    for one in submitted:
        chosen = [result for result in one.get("result") or [] if result.get("type") == "choices"]
        names = {str(result.get("from_name")) for result in chosen}
        if len(names) > 1:
            chosen = [result for result in chosen if result.get("from_name") == _first(names, file)]
        labels = [label for result in chosen for label in _labels_in(result.get("value"))]
        by = one.get("completed_by") or ""
        yield Annotation(number, photo, labels, str(by.get("email", by.get("id")) if isinstance(by, dict) else by))
    if not submitted:
        yield Annotation(number, photo, [], "")


def _from_records(file: Path, records: Sequence[dict]) -> Iterator[Annotation]:
    """The annotations in the formats JSON-MIN and CSV, which have a record for each: the task's data and the choice."""
    column = _first(dict.fromkeys(key for record in records for key in record if key), file)
    for record in records:
        by = str(record.get("annotator") or "")
        yield Annotation(str(record.get("id")), _photo_of(file, record), _labels_in(record.get(column)), by)


def _first(found: Iterable[str], file: Path) -> str:
    """The name among those `found` that is usual for the choice."""
    found = list(found)
    for name in (CHOICE, *COLUMNS["label"]):
        if name in found:
            return name
    raise UserError(
        f"{file}: no annotation is called {CHOICE}; names found: {list_some(found, most=12)}; expected "
        f'<Choices name="{CHOICE}"> in the labelling interface'
    )


def _labels_in(cell: object) -> list[str]:
    """The labels in a cell: a single one as it is, several as a list or an object, in CSV as JSON."""
    if isinstance(cell, str) and cell.startswith(("[", "{")):
        try:
            cell = json.loads(cell)
        except ValueError:
            return [cell]
    if isinstance(cell, dict):
        return _labels_in(cell.get("choices"))
    if isinstance(cell, list):
        return [label for part in cell for label in _labels_in(part)]
    return [str(cell)] if cell else []


def _photo_of(file: Path, data: Mapping[str, object]) -> str:
    """The photo's name or URL. A number, such as the task's id in CSV, is not one."""
    for name in COLUMNS["photo"]:
        if (value := data.get(name)) and isinstance(value, str) and name != "id":
            return value
    raise UserError(
        f"{file}: a task has only {list_some(list(data), most=12)}; expected the photo's name or URL as one of "
        f"{', '.join(name for name in COLUMNS['photo'] if name != 'id')}"
    )


def labels_of(
    annotations: Sequence[Annotation], photos: list[Photo], classes: Sequence[str] | str, file: Path
) -> dict[str, str]:
    """The label of each annotated photo, by the photo's path in the source; `classes` are those of params.yaml.

    Raises UserError, with a line for each problem, if a photo is not in the source or could be several, if a label is
    not a class, and if a photo has more than one label.
    """
    paths, class_names = PhotoNames(photos), None if classes == AUTO else ClassNames(classes)
    found: dict[str, tuple[str, Annotation]] = {}
    errors, missing = list[str](), list[str]()
    labelled = [annotation for annotation in annotations if annotation.labels]
    for annotation in labelled:
        same, label = paths.find(annotation.photo), annotation.labels[0]
        where = f"{file}, task {annotation.task}: {annotation.photo}"
        number = class_names.label(label) if class_names else None
        if not same:
            missing.append(annotation.photo)
        elif len(same) > 1:
            errors.append(f"{where} could be {same[0].path} or {same[1].path}; name it by its path")
        elif len(annotation.labels) > 1:
            errors.append(f"{where} is {' and '.join(annotation.labels)}; expected one label")
        elif class_names and number is None:
            errors.append(f"{where} is {label!r}; expected one of {list_some(classes)}, or set classes in params.yaml")
        else:
            label = label if number is None else classes[number]
            first_label, first = found.setdefault(same[0].path, (label, annotation))
            if normal_form(first_label) != normal_form(label):
                errors.append(
                    f"{where} is {first_label!r} by {first.by}, but {label!r} by {annotation.by}; delete one of the "
                    "two annotations, and export again"
                )
    if missing:
        errors.append(
            f"{file}: {len(missing)} of {len(labelled)} photos are not in the source, such as "
            f"{', '.join(missing[:NAMED])}; expected names such as {photos[0].path}"
        )
    if len(errors) > MOST_ERRORS:
        errors[MOST_ERRORS - 1 :] = [f"{file}: {len(errors) - MOST_ERRORS + 1} more errors like these"]
    if errors:
        raise UserError(*errors)
    return {path: label for path, (label, _) in found.items()}


def merge(table: Path, photos: list[Photo], labels: Mapping[str, str]) -> tuple[str, int, list[str]]:
    """The table's text with these labels, by path; how many rows were added; and a line for each label that changes.

    Rows of other photos, and other columns, stay as they are. Raises UserError if the table cannot be read, or has a
    column for each class.
    """
    columns, records, delimiter = read_cells(table)
    names = columns.names or ["photo", "label", "split"]
    places = columns.ours or {name: place for place, name in enumerate(names)}
    if columns.classes:
        raise UserError(f"{table} has a column for each class; set prepare.labels to a table of photo and label")
    paths, added, changes = PhotoNames(photos), dict(labels), []
    rows = [record.cells + [""] * (len(names) - len(record.cells)) for record in records]
    for row in rows:
        found = paths.find(row[places["photo"]])
        if len(found) == 1 and (label := labels.get(found[0].path)):
            added.pop(found[0].path, None)
            if normal_form(row[places["label"]]) != normal_form(label):
                changes.append(f"{found[0].path}: {label}, was {row[places['label']]}")
                row[places["label"]] = label
    for path, label in sorted(added.items()):
        row = [""] * len(names)
        row[places["photo"]], row[places["label"]] = path, label
        rows.append(row)
    text = io.StringIO()
    if delimiter not in DELIMITERS:
        text.write(f"sep={delimiter}\n")  # as the table says itself
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows([names, *rows])
    return text.getvalue(), len(added), changes
