"""Classify photos with the trained ensemble.

Folders and archives are searched for photos. Prints a table of the most probable classes, with the probability from the
ensemble and, if there are several, from each network, or all probabilities as CSV or JSON. An unreadable photo gets a
line as well, and the exit status is then 1.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

import argparse
import json
import math
import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from pipeline.core.all_params import Params
from pipeline.core.command_line import ArgumentParser
from pipeline.core.errors import UserError
from pipeline.core.files import atomic_write
from pipeline.core.process import check_first, run_stage
from pipeline.core.read_params import read_params
from pipeline.results import require_ensemble

IMAGE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


def read_inputs() -> argparse.Namespace:
    """The arguments. Raises UserError if they or the params are wrong, or if a model is missing."""
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "photos", nargs="+", metavar="PHOTO", help="a photo, folder or archive, or - for paths on stdin"
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--csv", action="store_true", help="write CSV instead of a table")
    output.add_argument("--json", action="store_true", help="write JSON instead of a table")
    parser.add_argument(
        "--grid", type=Path, metavar="FILE", help="also write the photos and predictions as a grid, to a .png or .jpg"
    )
    parser.add_argument(
        "--explain", action="store_true", help="in the image of --grid, also show where each network looked"
    )
    arguments = parser.parse_args()
    if arguments.grid and arguments.grid.suffix.lower() not in IMAGE_FORMATS:
        raise UserError(f"--grid {arguments.grid}: expected a name ending in .png or .jpg")
    if arguments.grid and arguments.grid.exists():
        raise UserError(f"--grid {arguments.grid}: already exists; use another name or delete it")
    if arguments.explain and not arguments.grid:
        raise UserError("--explain needs --grid FILE, which it draws into")
    require_ensemble(read_params(Params))
    return arguments


if __name__ == "__main__":
    check_first(read_inputs)

from pipeline.inference.ensemble import InputPhoto, Prediction, load_ensemble
from pipeline.pages.rendering import heat_image, says
from pipeline.photos.containers import is_archive, read_file
from pipeline.photos.decoding import UnreadablePhoto
from pipeline.photos.source import PhotoSource, describe_skipped, printable
from pipeline.scores.predictions import probability_columns

import pandas as pd
from PIL import Image, ImageDraw, ImageFont

MAX_IN_GRID = 1000  # photos
DIGITS = 6  # decimal places of probabilities in CSV and JSON


def main() -> None:
    arguments = read_inputs()
    with ExitStack() as sources:
        photos = [photo for path in paths_of(arguments.photos) for photo in photos_at(path, sources)]
        if not photos:
            raise UserError("no photos on stdin; expected one path per line")
        if arguments.grid and len(photos) > MAX_IN_GRID:
            raise UserError(f"--grid: {len(photos)} photos; expected at most {MAX_IN_GRID}")
        ensemble = load_ensemble()
        predictions = list(ensemble.predict(photos, bool(arguments.grid), arguments.explain))

    members, can_reject = list(ensemble.networks), ensemble.can_reject
    if arguments.csv:
        print(as_csv(predictions, ensemble.classes, members, can_reject), end="")
    elif arguments.json:
        print(as_json(predictions, can_reject))
    else:
        print(as_text(predictions, ensemble.shown_members))
    if arguments.explain:
        explained = {name for prediction in predictions for name in prediction.heat_maps}
        for name in members:
            if explained and name not in explained:
                print(f"warning: {name} has no heat maps", file=sys.stderr)
    if arguments.grid:
        with atomic_write() as write_to:
            image_format = IMAGE_FORMATS[arguments.grid.suffix.lower()]
            draw_predictions(predictions).save(write_to(arguments.grid), format=image_format)
        if not (arguments.csv or arguments.json):
            print(f"\nwrote {arguments.grid}")
    if unreadable := sum(bool(prediction.unreadable) for prediction in predictions):
        raise UserError(f"{unreadable} of {len(predictions)} photos could not be read")


def paths_of(names: list[str]) -> list[Path]:
    """The given paths, with `-` replaced by the paths on stdin, one per line."""
    paths: list[Path] = []
    for name in names:
        paths += stdin_paths() if name == "-" else [Path(name)]
    return paths


def stdin_paths() -> list[Path]:
    return [Path(os.fsdecode(line)) for line in sys.stdin.buffer.read().splitlines() if line]


def photos_at(path: Path, sources: ExitStack) -> list[InputPhoto]:
    """The photos of a folder or archive (closed by `sources`), or the single photo at `path`."""
    name = printable(str(path))
    try:
        if not path.exists():
            return [InputPhoto(name, failing("no such file or folder"))]
        if not path.is_dir() and not is_archive(path):
            return [InputPhoto(name, partial(read_file, path))]
        source = sources.enter_context(PhotoSource(path))
        for note in source.notes:
            print(f"note: {note}", file=sys.stderr)
        if source.skipped:
            print(f"note: skipped in {name}: {describe_skipped(source.skipped)}", file=sys.stderr)
        return [InputPhoto(f"{name}/{printable(photo.path)}", partial(source.read, photo)) for photo in source.photos()]
    except UserError as error:
        return [InputPhoto(name, failing(str(error).removeprefix(f"{path}: ")))]
    except OSError as error:  # no permission, or a name that is too long
        return [InputPhoto(name, failing(error.strerror or str(error)))]


def failing(reason: str) -> Callable[[], bytes]:
    """A `read` function that raises UnreadablePhoto."""

    def read() -> bytes:
        raise UnreadablePhoto(reason)

    return read


def as_text(predictions: list[Prediction], members: list[str]) -> str:
    """A table with one line per photo: its name, the most probable class, and the probabilities of that class."""
    width = max(len(prediction.photo) for prediction in predictions)
    labels = {prediction.photo: label_text(prediction) for prediction in predictions}
    label_width = max(map(len, ("label", *labels.values())))
    columns = ["probability", *members]
    widths = [max(len(name), 6) for name in columns]
    lines = [f"{'photo':{width}}  {'label':{label_width}}"]
    lines[0] += "".join(f"  {name:>{size}}" for name, size in zip(columns, widths, strict=True))
    for prediction in predictions:
        line = f"{prediction.photo:{width}}  {prediction.unreadable or labels[prediction.photo]:{label_width}}"
        if not prediction.unreadable:
            values = [prediction.confidence, *(prediction.members[name][prediction.label] for name in members)]
            line += "".join(f"  {value:>{size}.4f}" for value, size in zip(values, widths, strict=True))
        lines.append(line)
    return "\n".join(lines)


def label_text(prediction: Prediction) -> str:
    """The label, or `none of these (label)` for a photo that seems to show none of the classes."""
    return f"none of these ({prediction.label})" if prediction.rejected else prediction.label


def as_csv(predictions: list[Prediction], classes: list[str], members: list[str], can_reject: bool) -> str:
    """Columns photo, label, probability_<class>, <member>_probability_<class>, and unreadable (the reason).

    With `can_reject` also none_of_these, True for a photo that seems to show none of the classes.
    """
    of_ensemble = probability_columns(classes)
    columns = [*of_ensemble, *(f"{name}_{column}" for name in members for column in of_ensemble)]
    rows = []
    for prediction in predictions:
        by_class = (prediction.ensemble, *prediction.members.values())  # empty if the photo is unreadable
        values = [probability for probabilities in by_class for probability in probabilities.values()]
        probabilities = dict(zip(columns, values, strict=False))
        rows.append(
            {"photo": prediction.photo, "label": prediction.label, **probabilities, "unreadable": prediction.unreadable}
        )
        if not prediction.unreadable:
            rows[-1]["none_of_these"] = prediction.rejected
    rejected = ["none_of_these"] if can_reject else []
    table = pd.DataFrame(rows, columns=["photo", "label", *rejected, *columns, "unreadable"])
    return table.to_csv(index=False, float_format=f"%.{DIGITS}f")


def as_json(predictions: list[Prediction], can_reject: bool) -> str:
    """A list of objects with photo and either label, probabilities and members, or unreadable.

    With `can_reject` also none_of_these, true for a photo that seems to show none of the classes.
    """
    records = [
        {"photo": prediction.photo, "unreadable": prediction.unreadable}
        if prediction.unreadable
        else {
            "photo": prediction.photo,
            "label": prediction.label,
            **({"none_of_these": prediction.rejected} if can_reject else {}),
            "probabilities": rounded(prediction.ensemble),
            "members": {name: rounded(probabilities) for name, probabilities in prediction.members.items()},
        }
        for prediction in predictions
    ]
    return json.dumps(records, indent=2, ensure_ascii=False)


def rounded(probabilities: dict[str, float]) -> dict[str, float]:
    return {label: round(probability, DIGITS) for label, probability in probabilities.items()}


def draw_predictions(predictions: list[Prediction]) -> Image.Image:
    """The photos in a grid, as the networks saw them, each with its prediction and name.

    Where the networks looked is below each photo, if the predictions have heat maps.
    """
    side, gap, text_height = 160, 12, 40  # pixels
    members = max((list(prediction.heat_maps) for prediction in predictions), key=len)
    map_side = side // len(members) if members else 0
    columns = min(6, max(2, math.ceil(math.sqrt(len(predictions)))))
    rows = math.ceil(len(predictions) / columns)
    height = side + map_side + text_height
    sheet = Image.new("RGB", (columns * (side + gap) + gap, rows * (height + gap) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(16), ImageFont.load_default(12)
    for number, prediction in enumerate(predictions):
        row, column = divmod(number, columns)
        left, top = gap + column * (side + gap), gap + row * (height + gap)
        if prediction.pixels is None:
            draw.rectangle((left, top, left + side - 1, top + side - 1), outline="grey")
            text = "unreadable"
        else:
            sheet.paste(Image.fromarray(prediction.pixels).resize((side, side)), (left, top))
            text = "none of these" if prediction.rejected else says(prediction.ensemble)
            text = text.replace("\N{NO-BREAK SPACE}", " ")  # the font has no such glyph
        for place, (name, heat) in enumerate(prediction.heat_maps.items()):
            corner = (left + place * map_side, top + side)
            sheet.paste(heat_image(prediction.pixels, heat, map_side), corner)
            draw.text(corner, shortened(name, small, map_side), "black", small)
        text_top = top + side + map_side
        draw.text((left, text_top + 2), shortened(text, large, side), "black", large)
        draw.text((left, text_top + 22), shortened(Path(prediction.photo).name, small, side), "dimgrey", small)
    return sheet


def shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """`text`, its middle replaced by … if it would be wider than `width` pixels."""
    middle = len(text) // 2
    start, end = text[:middle], text[middle:]
    while font.getlength(text) > width:
        start, end = start[:-1], end[1:]
        text = f"{start}…{end}"
    return text


if __name__ == "__main__":
    run_stage(main)
