"""Classify photos with the trained ensemble.

Folders and archives are searched for photos. Prints a table of the most probable classes, with the probability from the
ensemble and, if there are several, from each network, or all probabilities as CSV or JSON. An unreadable photo gets a
line as well, and the exit status is then 1.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

import argparse
from contextlib import ExitStack

from pipeline.core.all_params import Params
from pipeline.core.command_line import ArgumentParser
from pipeline.core.errors import UserError
from pipeline.core.files import atomic_write
from pipeline.core.process import run_stage
from pipeline.core.read_params import read_params
from pipeline.core.results import require_ensemble

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


def main() -> None:
    arguments = read_inputs()

    # Slow imports, so not before: mistakes in the inputs should be reported at once.
    from pipeline.inference.ensemble import load_ensemble
    from pipeline.inference.grid import MAX_IN_GRID, draw_predictions
    from pipeline.inference.inputs import paths_of, photos_at
    from pipeline.inference.tables import as_csv, as_json, as_text

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


if __name__ == "__main__":
    run_stage(main)
