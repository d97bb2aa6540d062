"""Record the finished run in this project as a file in results/, from which `make tables` makes the tables in the docs.

The file says what the run was (commit, params, recipe, seeds; photos, splits and weights by their hashes), where it
ran, how many photos each network and the ensemble classified correctly, and the hashes of the predictions. It is named
after the photos, the recipe and the seed: results/cats-and-dogs-16000/best-seed1.json. Run this on the computer that
ran `dvc repro`, before the code changes.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

import argparse
import re

from pipeline.core import WORKSPACE
from pipeline.core.all_params import Params, without_folders
from pipeline.core.command_line import ArgumentParser
from pipeline.core.files import atomic_write, write_json
from pipeline.core.params import flatten
from pipeline.core.paths import ENSEMBLE_PREDICTIONS, NETWORK_PREDICTIONS
from pipeline.core.process import run_stage
from pipeline.core.read_params import read_params
from pipeline.core.tool_paths import RESULTS


def read_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("photos", metavar="PHOTOS", help="what the tables call the photos, such as 'cats and dogs'")
    parser.add_argument("--note", default="", help="a sentence that the tables show with the figures")
    parser.add_argument(
        "--seconds",
        action="append",
        type=stage_seconds,
        default=[],
        metavar="STAGE=SECONDS",
        help="how long a stage took, if you timed it, such as train_resnet18=713; repeatable",
    )
    arguments = parser.parse_args()
    if not slug(arguments.photos):
        parser.error(f"PHOTOS is {arguments.photos!r}; expected a name with letters or digits")
    return arguments


def stage_seconds(text: str) -> tuple[str, float]:
    stage, _, seconds = text.partition("=")
    if not re.fullmatch(r"[\w-]+", stage) or not re.fullmatch(r"\d+(\.\d+)?", seconds):
        raise argparse.ArgumentTypeError(f"{text!r} is not a stage and its seconds, such as train_resnet18=713")
    return stage, float(seconds)


def slug(text: str) -> str:
    """`cats-and-dogs` for `Cats and dogs`."""
    return "-".join(re.findall(r"[^\W_]+", text.lower()))


def main() -> None:
    arguments = read_arguments()

    # Slow imports, so not before: mistakes in the arguments should be reported at once.
    from pipeline.runs.dvc_command import require_up_to_date
    from pipeline.runs.fingerprint import hash_of
    from pipeline.runs.reading import read_run
    from pipeline.runs.recording import (
        code_id,
        count_correct,
        describe_computer,
        describe_photos,
        describe_weights,
        find_recipe,
        require_committed,
    )

    commit = require_committed()
    require_up_to_date()
    params = read_params(Params)
    runs = {split: read_run(WORKSPACE, split) for split in ("validation", "test")}
    record = {
        "commit": commit,
        "code": code_id(runs["test"]),
        "recipe": find_recipe(params),
        "photos": {"name": arguments.photos, **describe_photos(params)},
        "seeds": {"train": params.train.seed, "split": params.prepare.seed},
        "weights": {name: describe_weights(name, network.weights) for name, network in params.networks.items()},
        "combined_by": params.ensemble.method,
        "scores": count_correct(runs),
        "predictions": {path.as_posix(): hash_of(path) for path in (NETWORK_PREDICTIONS, ENSEMBLE_PREDICTIONS)},
        "made_with": describe_computer(params),
        "seconds": dict(arguments.seconds),
        "note": arguments.note,
        "params": dict(flatten(without_folders(params).model_dump(mode="json"))),
    }
    train = params.prepare.split.train
    folder = slug(f"{arguments.photos} {train}") if isinstance(train, int) else slug(arguments.photos)
    path = RESULTS / folder / f"{record['recipe']}-seed{params.train.seed}.json"
    is_new = not path.exists()
    with atomic_write() as write_to:
        write_json(write_to(path), record)
    print(f"{'wrote' if is_new else 'replaced'} {path}; `make tables` updates the tables")


if __name__ == "__main__":
    run_stage(main)
