"""Run every network over validation and test, once, and score it.

Usage, from the project's root: python stages/evaluate.py
Reads models/ and data/prepared/; writes metrics/predictions.csv (a row for each photo and network),
metrics/evaluate.json and metrics/confusion/. All that comes after is arithmetic on the predictions.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out

import time
from collections.abc import Iterator

from catsdogs.compute import choose_device, choose_precision, keep_freed_memory, make_deterministic, predict_logits
from catsdogs.dataset import PackedSplit, open_split
from catsdogs.errors import UserError
from catsdogs.files import PREPARED, existing, write_json, written_whole
from catsdogs.networks import load_network, ready_to_predict
from catsdogs.params import Params, read_params
from catsdogs.process import run_stage
from catsdogs.scores import confusion, label_numbers, probability_of_dog, score, scores_table

import pandas as pd
import torch

MODELS = Path("models")
CONFUSION = Path("metrics/confusion")
LOGIT_DIGITS = 6  # after the point; rounded before scoring, so that scores from predictions.csv are the same


def main() -> None:
    params = read_params()
    check_models(set(params.networks))
    make_deterministic()
    keep_freed_memory()
    device = choose_device()
    dtype = choose_precision(params.precision, device)
    photos = pd.read_csv(existing(PREPARED / "split.csv"), keep_default_na=False)
    splits = {split: open_split(PREPARED / f"{split}.safetensors", device) for split in ("validation", "test")}

    predictions = pd.concat(rows for name in params.networks for rows in predict(name, splits, photos, params, dtype))
    scores = {name: score_network(rows) for name, rows in predictions.groupby("network", sort=False)}
    with written_whole() as write_to:
        predictions.to_csv(write_to(Path("metrics/predictions.csv")), index=False)
        write_json(write_to(Path("metrics/evaluate.json")), scores)
        for name, rows in predictions[predictions["split"] == "test"].groupby("network", sort=False):
            matrix = confusion(probability_of_dog(rows), label_numbers(rows))
            matrix.to_csv(write_to(CONFUSION / f"{name}.csv"), index=False)  # a file for each, for DVC's plot
    print(scores_table(scores))


def check_models(names: set[str]) -> None:
    """models/ is an input as a whole, so that a further network needs no line here; it must hold the networks alone."""
    found = {path.stem for path in MODELS.glob("*.safetensors")}
    if missing := names - found:
        name = min(missing)
        raise UserError(f"there is no {MODELS}/{name}.safetensors; train {name}, by a stage of its own in dvc.yaml")
    if strays := found - names:
        name = min(strays)
        raise UserError(f"params.yaml names no network {name}; add it there or delete {MODELS}/{name}.safetensors")


def predict(
    name: str, splits: dict[str, PackedSplit], photos: pd.DataFrame, params: Params, dtype: torch.dtype
) -> Iterator[pd.DataFrame]:
    """For each split, a row for each of its photos with the network's logits.

    Raises UserError for a model that was trained on another draw, whose train may hold what is test here.
    """
    path = MODELS / f"{name}.safetensors"
    network, description = load_network(path)
    for split, packed in splits.items():
        expected = {"network": name, **packed.description}
        if differing := [key for key in expected if description.get(key) != expected[key]]:
            raise UserError(f"{path}: was trained with another {differing[0]} than that of {split}; train it again")
    network = ready_to_predict(network, params.test_time_flip, splits["test"].device)
    start = time.perf_counter()
    for split, packed in splits.items():
        logits = predict_logits(network, packed, dtype, f"{name} {split}").numpy().astype("float64")
        logits = logits.round(LOGIT_DIGITS)
        rows = photos.loc[photos["split"] == split, ["split", "photo", "label"]]
        yield rows.assign(network=name, logit_cat=logits[:, 0], logit_dog=logits[:, 1])
    rate = sum(map(len, splits.values())) / (time.perf_counter() - start)
    print(f"{name}: {rate:.1f} images/s", flush=True)


def score_network(rows: pd.DataFrame) -> dict:
    """Scores on test, and validation's accuracy and log loss beside them, from one network's predictions."""
    validation, test = rows[rows["split"] == "validation"], rows[rows["split"] == "test"]
    validation_scores = score(probability_of_dog(validation), label_numbers(validation))
    return {
        **score(probability_of_dog(test), label_numbers(test)),
        **{f"validation_{key}": validation_scores[key] for key in ("accuracy", "log_loss")},
    }


if __name__ == "__main__":
    run_stage(main)
