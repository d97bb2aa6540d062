"""Describe the results, so that another computer can compare its own."""

import hashlib
import platform
from importlib.metadata import version
from pathlib import Path

from pipeline.core.all_params import Params, without_folders
from pipeline.core.params import flatten
from pipeline.core.parse_yaml import parse_yaml
from pipeline.core.paths import ENSEMBLE_PREDICTIONS, NETWORK_PREDICTIONS
from pipeline.core.read_params import read_params
from pipeline.networks.compute import dtype_name, set_up
from pipeline.networks.devices import hardware_name
from pipeline.networks.from_timm import is_timms
from pipeline.runs.git import find_commit
from pipeline.scores.predictions import by_network, outputs_of, read_predictions
from pipeline.scores.scoring import ENSEMBLE, predicted_labels

import torch

PACKAGES = ("torch", "torchvision", "numpy", "pandas", "pillow", "scikit-learn", "scipy", "dvc")


def describe() -> dict:
    """The content of verify.json: the results here, and what they were made with."""
    params = read_params(Params)
    return {
        "commit": find_commit(),
        "params": dict(flatten(without_folders(params).model_dump(mode="json"))),
        "made_with": made_with(params),
        "outputs": {path.as_posix(): hash_of(path) for path in outputs(Path())},
        "answers": read_answers(Path()),
    }


def made_with(params: Params) -> dict:
    """The hardware and the versions with which networks run here."""
    device, dtype = set_up(params.device, params.precision, params.threads)
    packages = [*PACKAGES, *(["timm"] if any(map(is_timms, params.networks)) else [])]
    return {
        "hardware": hardware_name(device),
        "threads": torch.get_num_threads(),
        "precision": dtype_name(dtype),
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        **{package: version(package) for package in packages},
    }


def hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_answers(root: Path) -> dict[str, str]:
    """By network and for the ensemble: the predicted class indices of the test photos, separated by spaces."""
    answers = {}
    for path in (NETWORK_PREDICTIONS, ENSEMBLE_PREDICTIONS):
        table = read_predictions(root / path)
        for name, rows in by_network(table[table["split"] == "test"]).items():
            answers[name] = " ".join(map(str, predicted_labels(outputs_of(rows))))
    return answers


def count_differing(answers: str, others: str) -> dict[str, int]:
    pairs = list(zip(answers.split(), others.split(), strict=True))
    return {"differing": sum(one != other for one, other in pairs), "photos": len(pairs)}


def describe_differing(differ: dict[str, dict[str, int]]) -> str:
    """`resnet18 classifies 3 of 4,500 test photos differently, the ensemble 1`, or `every answer is the same`."""
    counts = {name: count["differing"] for name, count in differ.items() if count["differing"]}
    if not counts:
        return "every answer is the same"
    [photos] = {count["photos"] for count in differ.values()}
    names = ["the ensemble" if name == ENSEMBLE else name for name in counts]
    first, *others = zip(names, counts.values(), strict=True)
    texts = [f"{first[0]} classifies {first[1]:,} of {photos:,} test photos differently"]
    return ", ".join([*texts, *(f"{name} {count:,}" for name, count in others)])


def outputs(root: Path) -> list[Path]:
    """Every file that the stages wrote, here or in `root`."""
    stages = parse_yaml((root / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    found: dict[Path, None] = {}  # an ordered set
    for out in (Path(out["path"]) for stage in stages.values() for out in stage["outs"]):
        for folder in (Path(), root):
            files = sorted((folder / out).rglob("*")) if (folder / out).is_dir() else [folder / out]
            found |= dict.fromkeys(file.relative_to(folder) for file in files)
    return list(found)
