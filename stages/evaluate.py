"""Run every network over validation and test, once, and score it.

Reads models/ and data/prepared/; writes metrics/predictions.csv (one row per photo and network), metrics/evaluate.json
and metrics/confusion/. The stages after it only do arithmetic on the predictions.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

import time
from collections.abc import Iterator

from pipeline.core.command_line import read_arguments
from pipeline.core.errors import UserError
from pipeline.core.files import atomic_write, write_json
from pipeline.core.params import Params, read_params
from pipeline.core.paths import METRICS, MODELS, NETWORK_SCORES, PREDICTIONS, model, packed_split
from pipeline.core.process import run_stage
from pipeline.core.split_table import read_split_table
from pipeline.networks.compute import set_up
from pipeline.networks.dataset import PackedSplit, open_split
from pipeline.networks.models import load_model
from pipeline.networks.predicting import predict_logits, ready_to_predict
from pipeline.scores.scoring import confusion, label_numbers, probability_of_dog, score, scores_table

import pandas as pd
import torch

LOGIT_DIGITS = 6  # decimal places; rounded before scoring, so that predictions.csv gives the same scores


def main() -> None:
    read_arguments(__doc__)
    params = read_params()
    require_models(set(params.networks))
    device, dtype = set_up(params.precision)
    photos = read_split_table()
    splits = {split: open_split(packed_split(split), device) for split in ("validation", "test")}

    predictions = pd.concat(rows for name in params.networks for rows in predict(name, splits, photos, params, dtype))
    scores = {name: score_network(rows) for name, rows in predictions.groupby("network", sort=False)}
    with atomic_write() as write_to:
        predictions.to_csv(write_to(PREDICTIONS), index=False)
        write_json(write_to(NETWORK_SCORES), scores)
        for name, rows in predictions[predictions["split"] == "test"].groupby("network", sort=False):
            matrix = confusion(probability_of_dog(rows), label_numbers(rows))
            matrix.to_csv(write_to(METRICS / f"confusion/{name}.csv"), index=False)  # one file per DVC plot
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


def predict(
    name: str, splits: dict[str, PackedSplit], photos: pd.DataFrame, params: Params, dtype: torch.dtype
) -> Iterator[pd.DataFrame]:
    """Yield a table for each split, with one row per photo and the network's logits.

    Raises UserError if the model was trained on a different split, whose train may contain photos of this test.
    """
    network, description = load_model(model(name))
    for split, packed in splits.items():
        expected = {"network": name, **packed.description}
        if differing := [key for key in expected if description.get(key) != expected[key]]:
            key = "split" if differing[0] == "draw" else differing[0]
            raise UserError(
                f"{model(name)} was trained with a different {key} than {packed_split(split)} has; run `dvc repro`"
            )
    network = ready_to_predict(network, params.evaluate.test_time_flip, splits["test"].device)
    start = time.perf_counter()
    for split, packed in splits.items():
        logits = predict_logits(network, packed, dtype, f"{name} {split}").numpy().astype("float64")
        logits = logits.round(LOGIT_DIGITS)
        rows = photos.loc[photos["split"] == split, ["split", "photo", "label"]]
        yield rows.assign(network=name, logit_cat=logits[:, 0], logit_dog=logits[:, 1])
    rate = sum(map(len, splits.values())) / (time.perf_counter() - start)
    print(f"{name}: {rate:.1f} images/s", flush=True)


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
