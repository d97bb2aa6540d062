"""What a record in results/ says of the run here: what it was, how well it did, and on what computer."""

import hashlib
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from pipeline.core import SPLITS, WORKSPACE
from pipeline.core.all_params import Params
from pipeline.core.errors import UserError, list_some
from pipeline.core.files import read_json
from pipeline.core.params import find_weights
from pipeline.core.paths import PREPARE_SUMMARY, packed_split, train_scores
from pipeline.editing.recipes import apply_recipe, changed_values, recipe_names
from pipeline.networks.dataset import open_split
from pipeline.networks.from_timm import is_timms
from pipeline.runs.fingerprint import hash_of, made_with
from pipeline.runs.git import changed_files, find_commit
from pipeline.runs.reading import Run, read_here, read_lock
from pipeline.scores.scoring import ENSEMBLE

import torch
from torchvision import models

CODE = ("stages", "pipeline", "recipes", "requirements", "requirements.txt")


def require_committed() -> str:
    """The commit whose code is here. Raises UserError if the code has changed since, or outside git."""
    if not (commit := find_commit().removesuffix("+")):
        raise UserError("there is no git commit here; expected one, so that others can find the code of the run")
    if changed := changed_files("--", *CODE):
        raise UserError(f"{list_some(changed)}: not committed; commit the code, then run `dvc repro` and this again")
    return commit


def code_id(run: Run) -> str:
    """A fingerprint of the modules that the run's stages used, and of the versions of their packages."""
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
    """The file of a network's pretrained weights; with its hash, unless torchvision's or timm's name has it."""
    if path := find_weights(name, weights):
        return {"file": path.name, "sha256": hash_of(path)}
    torchvisions = {} if is_timms(name) else models.get_model_weights(name).__members__
    return {"file": Path(urlparse(torchvisions[weights].url).path).name if weights in torchvisions else weights}


def count_correct(runs: dict[str, Run]) -> dict[str, dict]:
    """By network, and for the ensemble if there are several networks: correct answers and log loss on each split."""
    scores: dict[str, dict[str, Any]] = {}
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
    """The hardware and versions here, with the number of threads that `train` recorded (on a CPU)."""
    trained = read_json(train_scores(next(iter(params.networks))))
    computer = made_with(params) | {key: trained[key] for key in ("threads",) if key in trained}
    del computer["platform"]  # nobody needs the kernel's version to repeat a run
    return computer
