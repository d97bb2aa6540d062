"""Set the threshold for rejecting photos that show none of the classes; off if reject.false_rejection_rate is null.

Reads data/prepared/ and the pretrained weights of the alphabetically first network; writes
models/rejection.safetensors (what inference needs) and metrics/rejection.csv (one row per photo of validation and test:
its similarity to the photos in train, and whether it is rejected). The threshold is set on validation: at most
reject.false_rejection_rate of its photos are rejected.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

import json
from dataclasses import asdict

from pipeline.core import SPLITS
from pipeline.core.command_line import read_arguments
from pipeline.core.errors import UserError
from pipeline.core.files import atomic_write, require_files
from pipeline.core.params import Device, Networks, Precision, Section, Threads, find_weights
from pipeline.core.paths import REJECTION, REJECTION_TABLE, SPLIT_TABLE, packed_split
from pipeline.core.process import run_stage
from pipeline.core.read_params import read_params
from pipeline.core.sections.reject import Reject

from safetensors import serialize

COLUMNS = ["split", "photo", "label", "similarity", "rejected"]
DIGITS = 6


class Params(Section):
    """What this stage reads of params.yaml."""

    networks: Networks
    device: Device
    precision: Precision
    threads: Threads
    reject: Reject


def read_inputs() -> Params:
    """The params. Raises UserError if they are wrong, or if something is missing that fitting needs."""
    read_arguments(__doc__)
    params = read_params(Params)
    if params.reject.false_rejection_rate:
        name, weights = first_network(params)
        if weights == "none":
            raise UserError(
                f"params.yaml: networks.{name}.weights is none, but reject.false_rejection_rate needs pretrained "
                "weights; set other weights for this network, or reject.false_rejection_rate to null"
            )
        find_weights(name, weights)
        require_files(*map(packed_split, SPLITS), SPLIT_TABLE)
    return params


def first_network(params: Params) -> tuple[str, str]:
    """The name and the weights of the network whose features are used: the alphabetically first one."""
    name = min(params.networks)  # not the first in params.yaml: DVC does not rerun this if only the order changes
    return name, params.networks[name].weights


def main() -> None:
    params = read_inputs()
    if rate := params.reject.false_rejection_rate:
        fit(params, rate)
        return
    with atomic_write() as write_to:
        write_to(REJECTION).write_bytes(serialize({}, {"rejection": json.dumps({"false_rejection_rate": None})}))
        write_to(REJECTION_TABLE).write_text(",".join(COLUMNS) + "\n")
    print("reject is off (reject.false_rejection_rate is null): no photo is rejected")


def fit(params: Params, rate: float) -> None:
    """Compute the features of known photos, set the threshold, and write both."""
    # Slow imports, which are not needed if reject.false_rejection_rate is null.
    from pipeline.core.split_table import read_split_table
    from pipeline.networks.building import build_network, check_image_size, normalisation_of
    from pipeline.networks.compute import set_up, to_device
    from pipeline.networks.dataset import open_split
    from pipeline.networks.predicting import predict_features
    from pipeline.networks.rejection import choose_threshold, make_references, save_rejection, similarities

    import pandas as pd

    name, weights = first_network(params)
    device, dtype = set_up(params.device, params.precision, params.threads)
    normalisation = normalisation_of(name, weights)
    network = build_network(name, weights, classes=1, head_width=None, dropout=0, seed=0)
    splits = {split: open_split(packed_split(split), device).normalised(normalisation) for split in SPLITS}
    check_image_size(network, name, splits["train"].description["image_size"], "prepare.image_size")
    to_device(network, device)
    references = make_references(network, splits["train"], dtype)
    photos, similar = read_split_table(), {}
    for split in ("validation", "test"):
        features = predict_features(network, splits[split], dtype, f"{name} {split}")
        similar[split] = similarities(features, references)
    threshold = choose_threshold(similar["validation"], rate)

    tables = [
        photos.loc[photos["split"] == split, ["split", "photo", "label"]].assign(
            similarity=values.double().numpy().round(DIGITS), rejected=(values < threshold).numpy()
        )
        for split, values in similar.items()
    ]
    with atomic_write() as write_to:
        description = {
            "network": name,
            "false_rejection_rate": rate,
            "threshold": threshold,
            **asdict(normalisation),
            **splits["train"].description,
        }
        save_rejection(write_to(REJECTION), network, references, description)
        pd.concat(tables)[COLUMNS].to_csv(write_to(REJECTION_TABLE), index=False)
    for split, values in similar.items():
        print(f"{split}: {int((values < threshold).sum())} of {len(values)} photos rejected")
    if not (similar["validation"] < threshold).any():
        print(f"note: {rate} of {len(similar['validation'])} validation photos is less than one photo")


if __name__ == "__main__":
    run_stage(main)
