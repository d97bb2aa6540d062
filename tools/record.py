"""Record the finished run in this project as a file in results/, from which `make tables` makes the tables in the docs.

The file says what the run was (commit, params, recipe, seeds; photos, splits and weights by their hashes), where it
ran, how many photos each network and the ensemble classified correctly, and the hashes of the predictions. Its name
comes from that of the photos, the recipe and the seed: results/cats-and-dogs-16000/best-seed1.json. Run it on the
computer that ran `dvc repro`, before the code changes.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

import argparse
import hashlib
import json
import re
from typing import Any
from urllib.parse import urlparse

from pipeline.core import SPLITS, WORKSPACE
from pipeline.core.all_params import Params, without_folders
from pipeline.core.command_line import ArgumentParser
from pipeline.core.errors import UserError, list_some
from pipeline.core.files import atomic_write, read_json, write_json
from pipeline.core.params import find_weights, flatten
from pipeline.core.paths import ENSEMBLE_PREDICTIONS, NETWORK_PREDICTIONS, PREPARE_SUMMARY, packed_split, train_scores
from pipeline.core.process import check_first, run_stage
from pipeline.core.read_params import read_params
from pipeline.core.tool_paths import RESULTS
from pipeline.editing.recipes import apply_recipe, changed_values, recipe_names

CODE = ("stages", "pipeline", "recipes", "requirements", "requirements.txt")


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
    if not re.fullmatch(r"\w+", stage) or not re.fullmatch(r"\d+(\.\d+)?", seconds):
        raise argparse.ArgumentTypeError(f"{text!r} is not a stage and its seconds, such as train_resnet18=713")
    return stage, float(seconds)


def slug(text: str) -> str:
    """`cats-and-dogs` for `Cats and dogs`."""
    return "-".join(re.findall(r"[^\W_]+", text.lower()))


if __name__ == "__main__":
    check_first(read_arguments)

from pipeline.networks.dataset import open_split
from pipeline.runs.dvc_command import require_up_to_date
from pipeline.runs.fingerprint import changed_files, find_commit, hash_of, made_with
from pipeline.runs.reading import Run, read_here, read_lock, read_run
from pipeline.scores.scoring import ENSEMBLE

import torch
from torchvision import models


def main() -> None:
    arguments = read_arguments()
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


# ---- what it was ----


def require_committed() -> str:
    """The commit whose code is here. Raises UserError if the code has changed since, or outside git."""
    if not (commit := find_commit().removesuffix("+")):
        raise UserError("there is no commit of git here; expected one, so that others can find the code of the run")
    if changed := changed_files("--", *CODE):
        raise UserError(f"{list_some(changed)}: not committed; commit the code, then run `dvc repro` and this again")
    return commit


def code_id(run: Run) -> str:
    """A fingerprint of the modules that the run's stages ran, and of the versions of their packages."""
    return hashlib.sha256(json.dumps(run.code, sort_keys=True).encode()).hexdigest()[:16]


def find_recipe(params: Params) -> str:
    """The recipe that `params` have. Raises UserError if they have none."""
    changes = {
        name: changed_values(Params.model_validate(apply_recipe(name, params)), params) for name in recipe_names()
    }
    name = min(changes, key=lambda name: len(changes[name]))
    if changes[name]:
        values = [f"{key} {here} instead of {there}" for key, (there, here) in changes[name].items()]
        raise UserError(
            f"the params are not those of a recipe; they differ from {name} in {list_some(values)}; add a file to "
            "recipes/, so that the tables can name it"
        )
    return name


def describe_photos(params: Params) -> dict:
    """The hash that DVC has of the photos, and the splits: their fingerprint, their sizes, and prepare.split."""
    source = Path(params.prepare.source).resolve()
    stages = read_lock(WORKSPACE, read_here)
    [md5] = [dep["md5"] for dep in stages["prepare"]["deps"] if Path(dep["path"]).resolve() == source]
    summary = read_json(PREPARE_SUMMARY)
    return {
        "md5": md5,
        "split_id": open_split(packed_split("test"), torch.device("cpu")).description["split_id"],
        **{split: summary[split] for split in SPLITS},
        "split": params.prepare.split.model_dump(mode="json"),
    }


def describe_weights(name: str, weights: str) -> dict[str, str]:
    """The file of a network's pretrained weights, with its hash unless the name has it, as torchvision's and timm's."""
    if path := find_weights(name, weights):
        return {"file": path.name, "sha256": hash_of(path)}
    torchvisions = models.get_model_weights(name).__members__
    return {"file": Path(urlparse(torchvisions[weights].url).path).name if weights in torchvisions else weights}


# ---- how well it did ----


def count_correct(runs: dict[str, Run]) -> dict[str, dict]:
    """By network, and for the ensemble if there are several networks: correct answers and log loss on each split."""
    scores = {}
    for name in runs["test"].answers:
        if name == ENSEMBLE and len(runs["test"].answers) == 2:
            continue  # of a single network
        scores[name] = {} if name == ENSEMBLE else {"kept_epoch": runs["test"].kept_epochs[name]}
        for split, run in runs.items():
            if answers := run.answers.get(name):  # an ensemble that was fitted on validation has none there
                scores[name][split] = {
                    "correct": int(answers.correct.sum()),
                    "photos": len(answers.correct),
                    "log_loss": round(float(answers.log_loss.mean()), 6),
                }
    return scores


def describe_computer(params: Params) -> dict[str, Any]:
    """The hardware and the versions here, with the threads that `train` says it used (on a CPU)."""
    trained = read_json(train_scores(next(iter(params.networks))))
    computer = made_with(params) | {key: trained[key] for key in ("threads",) if key in trained}
    del computer["platform"]  # the name of a kernel helps nobody to repeat a run
    return computer


if __name__ == "__main__":
    run_stage(main)
