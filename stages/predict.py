"""Ask the trained ensemble about photos: cat or dog, and how sure each network is.

Usage, from the project's root: python stages/predict.py photo.jpg folder/ archive.zip
Folders and zips are walked. Writes a table to stdout, or CSV or JSON; every probability is that of a dog. A photo that
cannot be read gets its line as well, and the status is 1 at the end.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out

import argparse
import json
import math
import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from catsdogs.errors import UserError
from catsdogs.files import written_whole
from catsdogs.inference import Answer, Question, load_ensemble
from catsdogs.pages import says
from catsdogs.photos import Photo, PhotoSource, UnreadablePhoto, printable
from catsdogs.process import run_stage

import pandas as pd
from PIL import Image, ImageDraw, ImageFont

PICTURE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
MOST_IN_PICTURE = 1000  # photos
DIGITS = 6  # of a probability in CSV and JSON, after the point


def main() -> None:
    arguments = read_arguments()
    if arguments.picture and arguments.picture.suffix.lower() not in PICTURE_FORMATS:
        raise UserError(f"--picture {arguments.picture}: expected a name that ends in .png or .jpg")
    if arguments.picture and arguments.picture.exists():
        raise UserError(f"--picture {arguments.picture}: is there already; name another, or delete it")
    with ExitStack() as sources:
        questions = [question for path in paths_of(arguments.photos) for question in questions_about(path, sources)]
        if not questions:
            raise UserError("stdin names no photos; expected a path a line")
        if arguments.picture and len(questions) > MOST_IN_PICTURE:
            raise UserError(f"--picture: {len(questions)} photos; expected at most {MOST_IN_PICTURE}")
        ensemble = load_ensemble()
        answers = list(ensemble.answer(questions, keep_pixels=bool(arguments.picture)))

    members = list(ensemble.networks)
    if arguments.csv:
        print(as_csv(answers, members), end="")
    elif arguments.json:
        print(as_json(answers))
    else:
        print(as_text(answers, members))
    if arguments.picture:
        with written_whole() as write_to:
            picture_format = PICTURE_FORMATS[arguments.picture.suffix.lower()]
            draw_picture(answers).save(write_to(arguments.picture), format=picture_format)
    if unreadable := sum(bool(answer.unreadable) for answer in answers):
        raise UserError(f"{unreadable} of {len(answers)} could not be read; the others are answered")


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Cat or dog? Every probability is that of a dog, from 0 to 1.")
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="a photo, folder or zip; -: their paths, from stdin")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--csv", action="store_true", help="write CSV instead of a table")
    output.add_argument("--json", action="store_true", help="write JSON instead of a table")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the photos and answers, as .png or .jpg")
    return parser.parse_args()


def paths_of(names: list[str]) -> list[Path]:
    """The paths given, with those that stdin names, a line each, in the place of `-`."""
    paths: list[Path] = []
    for name in names:
        paths += stdin_paths() if name == "-" else [Path(name)]
    return paths


def stdin_paths() -> list[Path]:
    return [Path(os.fsdecode(line)) for line in sys.stdin.buffer.read().split(b"\n") if line]


def questions_about(path: Path, sources: ExitStack) -> list[Question]:
    """A question for each photo of a folder or zip, which `sources` will close, or one for the photo at `path`."""
    name = printable(str(path))
    try:
        if not path.exists():
            return [Question(name, failing("no such file or folder"))]
        if not path.is_dir() and path.suffix.lower() != ".zip":
            return [Question(name, partial(PhotoSource(path.parent).read, Photo(name, path.name, label=None)))]
        source = sources.enter_context(PhotoSource(path))
        return [Question(f"{name}/{printable(photo.path)}", partial(source.read, photo)) for photo in source.photos()]
    except UserError as error:
        return [Question(name, failing(str(error).removeprefix(f"{path}: ")))]
    except OSError as error:  # no permission, a name that is too long
        return [Question(name, failing(error.strerror or str(error)))]


def failing(reason: str) -> Callable[[], bytes]:
    def read() -> bytes:
        raise UnreadablePhoto(reason)

    return read


def as_text(answers: list[Answer], members: list[str]) -> str:
    """A line for each photo: its name, the answer, and the probabilities of dog."""
    width = max(len(answer.photo) for answer in answers)
    widths = [max(len(name), 6) for name in members]
    lines = [f"{'':{width}}  {'':6}  {'P(dog)':>6}"]
    lines[0] += "".join(f"  {name:>{size}}" for name, size in zip(members, widths, strict=True))
    for answer in answers:
        line = f"{answer.photo:{width}}  {answer.unreadable or answer.label:6}"
        if not answer.unreadable:
            line += f"  {answer.ensemble:.4f}"
            line += "".join(f"  {answer.members[name]:>{size}.4f}" for name, size in zip(members, widths, strict=True))
        lines.append(line)
    return "\n".join(lines)


def as_csv(answers: list[Answer], members: list[str]) -> str:
    """Columns photo, label, ensemble, one for each member, and unreadable: why there is no answer."""
    rows = [
        {"photo": answer.photo, "label": answer.label, "ensemble": answer.ensemble}
        | {name: answer.members.get(name) for name in members}
        | {"unreadable": answer.unreadable}
        for answer in answers
    ]
    return pd.DataFrame(rows).to_csv(index=False, float_format=f"%.{DIGITS}f")


def as_json(answers: list[Answer]) -> str:
    """A list of objects: photo, and label, ensemble and members, or unreadable."""
    records = [
        {"photo": answer.photo, "unreadable": answer.unreadable}
        if answer.unreadable
        else {
            "photo": answer.photo,
            "label": answer.label,
            "ensemble": round(answer.ensemble, DIGITS),
            "members": {name: round(probability, DIGITS) for name, probability in answer.members.items()},
        }
        for answer in answers
    ]
    return json.dumps(records, indent=2, ensure_ascii=False)


def draw_picture(answers: list[Answer]) -> Image.Image:
    """The photos in a grid, as the networks saw them, each with what was said of it and its name."""
    side, gap, text_height = 160, 12, 40  # pixels
    columns = min(6, max(2, math.ceil(math.sqrt(len(answers)))))
    lines = math.ceil(len(answers) / columns)
    picture = Image.new("RGB", (columns * (side + gap) + gap, lines * (side + text_height + gap) + gap), "white")
    draw = ImageDraw.Draw(picture)
    large, small = ImageFont.load_default(16), ImageFont.load_default(12)
    for number, answer in enumerate(answers):
        line, column = divmod(number, columns)
        left, top = gap + column * (side + gap), gap + line * (side + text_height + gap)
        if answer.pixels is None:
            draw.rectangle((left, top, left + side - 1, top + side - 1), outline="grey")
            said = "unreadable"
        else:
            picture.paste(Image.fromarray(answer.pixels).resize((side, side)), (left, top))
            said = says(answer.ensemble)
        draw.text((left, top + side + 2), said, "black", large)
        name = Path(answer.photo).name
        while draw.textlength(name, small) > side:
            name = f"…{name[2:]}"
        draw.text((left, top + side + 22), name, "dimgrey", small)
    return picture


if __name__ == "__main__":
    run_stage(main)
