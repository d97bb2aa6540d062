"""Find where each network looked, on the test photos that the report shows.

Reads models/, data/prepared/test.safetensors, metrics/predictions.csv and metrics/ensemble_predictions.csv; writes
metrics/heat_maps.safetensors with `rows`, the photos' rows in test (int64 [N]), and by network uint8 [N, height,
width], 255 for the area that supports its prediction most. Networks without a last feature map (ViT) are left out.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

from pipeline.core.command_line import read_arguments
from pipeline.core.errors import UserError
from pipeline.core.files import atomic_write, require_files
from pipeline.core.params import Params, read_params
from pipeline.core.paths import ENSEMBLE_PREDICTIONS, HEAT_MAPS, PREDICTIONS, model, packed_split
from pipeline.core.process import check_first, run_stage


def read_inputs() -> Params:
    """The params. Raises UserError if they are wrong, or if an input is missing."""
    read_arguments(__doc__)
    params = read_params()
    require_files(packed_split("test"), PREDICTIONS, ENSEMBLE_PREDICTIONS, *map(model, params.networks))
    return params


if __name__ == "__main__":
    check_first(read_inputs)

from pipeline.networks.compute import set_up
from pipeline.networks.dataset import PackedSplit, open_split
from pipeline.networks.explaining import heat_maps
from pipeline.networks.models import load_model
from pipeline.scores.hardest import hardest
from pipeline.scores.predictions import (
    label_numbers,
    probability_columns,
    read_ensemble_predictions,
    read_logits,
    select_split,
)
from pipeline.scores.scoring import predicted_labels

import numpy as np
import torch
from safetensors.torch import save


def main() -> None:
    params = read_inputs()
    device, _ = set_up(params.device, params.precision)
    test = open_split(packed_split("test"), device)
    rows = torch.from_numpy(find_hardest(test))
    print(f"{len(rows)} of {len(test)} test photos", flush=True)
    images = test.images(rows.to(test.pixels.device))
    predictions = select_split(read_logits(), "test")
    tensors = {"rows": rows}
    for name in params.networks:
        network, _ = load_model(model(name))
        predicted = torch.from_numpy(predicted_labels(predictions.logits[name])[rows])
        maps = heat_maps(network.to(device), images, predicted.to(device))
        if maps is None:
            print(f"{name}: no heat maps; it has no last feature map")
        else:
            tensors[name] = maps
            print(f"{name}: {len(maps)} heat maps of {maps.shape[1]} x {maps.shape[2]}")
    with atomic_write() as write_to:
        write_to(HEAT_MAPS).write_bytes(save(tensors))


def find_hardest(test: PackedSplit) -> np.ndarray:
    """The rows of the photos that the report shows, in ascending order."""
    combined = read_ensemble_predictions()
    combined = combined[combined["split"] == "test"]
    classes = test.description["classes"]
    labels = label_numbers(combined["label"], classes)
    if not np.array_equal(labels, test.labels.cpu()):
        raise UserError(f"{ENSEMBLE_PREDICTIONS} is not for the photos in {packed_split('test')}; run `dvc repro`")
    probabilities = combined[probability_columns(classes)].to_numpy()
    return hardest(probabilities, labels)


if __name__ == "__main__":
    run_stage(main)
