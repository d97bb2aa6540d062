"""Run every network over validation and test, once, and score it.

Reads models/ and data/prepared/; writes metrics/predictions.csv (one row per photo and network), metrics/evaluate.json
and metrics/confusion/. Later stages run no network.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

import time

from pipeline.core.command_line import read_arguments
from pipeline.core.errors import UserError
from pipeline.core.files import atomic_write, write_json
from pipeline.core.params import read_params
from pipeline.core.paths import MODELS, NETWORK_SCORES, PREDICTIONS, confusion_file, model, packed_split
from pipeline.core.process import run_stage
from pipeline.core.split_table import read_split_table
from pipeline.networks.compute import set_up
from pipeline.networks.dataset import PackedSplit, open_split
from pipeline.networks.models import load_model
from pipeline.networks.predicting import predict_logits, ready_to_predict
from pipeline.scores.scoring import confusion, label_numbers, probability_of_dog, score, scores_table

import pandas as pd
import torch
from torch import nn

LOGIT_DIGITS = 6  # decimal places; rounded before scoring, so that predictions.csv gives the same scores


def main() -> None:
    read_arguments(__doc__)
    params = read_params()
    require_models(set(params.networks))
    device, dtype = set_up(params.precision)
    photos = read_split_table()
    splits = {split: open_split(packed_split(split), device) for split in ("validation", "test")}

    tables = []
    for name in params.networks:
        network = ready_to_predict(read_network(name, splits), params.evaluate.test_time_flip, device)
        start = time.perf_counter()
        tables.append(predict(name, network, splits, photos, dtype))
        print(f"{name}: {len(tables[-1]) / (time.perf_counter() - start):.1f} images/s", flush=True)
    predictions = pd.concat(tables)
    scores = {name: score_network(rows) for name, rows in predictions.groupby("network", sort=False)}
    with atomic_write() as write_to:
        predictions.to_csv(write_to(PREDICTIONS), index=False)
        write_json(write_to(NETWORK_SCORES), scores)
        for name, rows in predictions[predictions["split"] == "test"].groupby("network", sort=False):
            matrix = confusion(probability_of_dog(rows), label_numbers(rows))
            matrix.to_csv(write_to(confusion_file(name)), index=False)  # one file per DVC plot
    print(scores_table(scores))


def require_models(names: set[str]) -> None:
    """Raise UserError unless models/ contains exactly these networks, because the stage depends on the whole folder."""
    found = {path.stem for path in MODELS.glob("*.safetensors")}
    if missing := names - found:
        name = min(missing)
        raise UserError(
            f"{model(name)} does not exist; run `dvc repro` (if dvc.yaml has no stage train_{name}, first run "
            f"`python tools/networks.py {' '.join(sorted(names))}`)"
        )
    if strays := found - names:
        name = min(strays)
        raise UserError(f"{model(name)} is not for a network in params.yaml; add {name} to networks or delete the file")


def read_network(name: str, splits: dict[str, PackedSplit]) -> nn.Module:
    """Load a trained network.

    Raises UserError if the file contains another network, or one that was trained with a different image size, resize
    or split, whose training photos may include these test photos.
    """
    network, description = load_model(model(name))
    if description["network"] != name:
        raise UserError(f"{model(name)} contains {description['network']}; expected {name}; run `dvc repro`")
    for split, packed in splits.items():
        if differing := [key for key, value in packed.description.items() if description.get(key) != value]:
            key = "split" if differing[0] == "draw" else differing[0]
            raise UserError(
                f"{model(name)} was trained with a different {key} than {packed_split(split)} has; run `dvc repro`"
            )
    return network


def predict(
    name: str, network: nn.Module, splits: dict[str, PackedSplit], photos: pd.DataFrame, dtype: torch.dtype
) -> pd.DataFrame:
    """The network's logits: one row per photo of each split."""
    tables = []
    for split, packed in splits.items():
        logits = predict_logits(network, packed, dtype, f"{name} {split}").numpy().astype("float64")
        logits = logits.round(LOGIT_DIGITS)
        rows = photos.loc[photos["split"] == split, ["split", "photo", "label"]]
        tables.append(rows.assign(network=name, logit_cat=logits[:, 0], logit_dog=logits[:, 1]))
    return pd.concat(tables)


def score_network(rows: pd.DataFrame) -> dict:
    """The scores of one network's predictions: all scores on test, and accuracy and log loss on validation."""
    validation, test = rows[rows["split"] == "validation"], rows[rows["split"] == "test"]
    validation_scores = score(probability_of_dog(validation), label_numbers(validation))
    return {
        **score(probability_of_dog(test), label_numbers(test)),
        **{f"validation_{key}": validation_scores[key] for key in ("accuracy", "log_loss")},
    }


if __name__ == "__main__":
    run_stage(main)
