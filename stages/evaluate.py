"""Run every network over validation and test, once, and score it.

Reads models/networks/ and data/prepared/; writes metrics/networks/ (the main scores, one file per network), and the
tables networks.csv in metrics/predictions/ (one row per photo and network), metrics/scores/ and metrics/class_scores/.
`ensemble` and `report` run no network, so it also writes the heat maps that the report shows,
metrics/heat_maps.safetensors: `rows`, the photos' rows in test (int64 [N]), and for each network uint8 [N, height,
width], 255 for the area that supports its prediction most. Networks without a last feature map have none.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

from pipeline.core.command_line import read_arguments
from pipeline.core.errors import UserError
from pipeline.core.files import atomic_write, require_files, write_json
from pipeline.core.params import Device, Network, Networks, Precision, Section, Threads
from pipeline.core.paths import (
    HEAT_MAPS,
    NETWORK_CLASS_SCORES,
    NETWORK_METRICS,
    NETWORK_MODELS,
    NETWORK_PREDICTIONS,
    NETWORK_SCORES,
    SPLIT_TABLE,
    from_disk,
    model,
    network_metrics,
    packed_split,
    train_stage,
)
from pipeline.core.process import run_stage
from pipeline.core.read_params import read_params
from pipeline.core.sections.evaluate import Evaluate


class Params(Section):
    """What this stage reads of params.yaml."""

    networks: Networks
    device: Device
    precision: Precision
    threads: Threads
    evaluate: Evaluate


def read_inputs() -> Params:
    """The params. Raises UserError if they are wrong, or if an input is missing."""
    read_arguments(__doc__)
    params = read_params(Params)
    require_models(set(params.networks))
    require_files(packed_split("validation"), packed_split("test"), SPLIT_TABLE)
    return params


def require_models(names: set[str]) -> None:
    """Raise UserError unless models/networks/ has exactly these networks, because the stage depends on all of it."""
    expected, found = {model(name): name for name in names}, {*NETWORK_MODELS.glob("*.safetensors")}
    if missing := expected.keys() - found:
        path = min(missing)
        raise UserError(
            f"{path} does not exist; run `dvc repro` (if dvc.yaml has no stage {train_stage(expected[path])}, first "
            f"run `python tools/networks.py {' '.join(sorted(names))}`)"
        )
    if strays := found - expected.keys():
        path = min(strays)
        name = from_disk(path.stem)
        raise UserError(f"{path} is not for a network in params.yaml; add {name} to networks or delete the file")


def main() -> None:
    params = read_inputs()

    # Slow imports, so not before: mistakes in the inputs should be reported at once.
    from pipeline.core.split_table import count_classes, read_split_table
    from pipeline.networks.compute import dtype_name, set_up
    from pipeline.networks.dataset import open_split
    from pipeline.networks.explaining import explain
    from pipeline.networks.models import load_trained
    from pipeline.networks.normalisation import Normalisation
    from pipeline.networks.predicting import predict_splits
    from pipeline.scores.evaluating import logits_table, print_scores, score_networks
    from pipeline.scores.hardest import hardest_with_any_method
    from pipeline.scores.predictions import select_split
    from pipeline.scores.scoring import headline, predicted_labels, score_classes, write_class_scores, write_scores

    import pandas as pd
    from safetensors.torch import save

    device, dtype = set_up(params.device, params.precision, params.threads)
    photos = read_split_table()
    splits = {split: open_split(packed_split(split), device) for split in ("validation", "test")}
    sizes = " and ".join(f"{len(packed)} {split}" for split, packed in splits.items())
    print(f"{sizes} photos, {dtype_name(dtype)} on {device.type}", flush=True)

    networks, descriptions, tables = {}, {}, []
    for name in params.networks:
        networks[name], descriptions[name] = load_trained(name, splits)
        normalised = {split: of.normalised(Normalisation.of(descriptions[name])) for split, of in splits.items()}
        outputs = predict_splits(name, networks[name], normalised, params.evaluate.test_time_flip, dtype)
        tables.append(logits_table(name, photos, splits["test"].description["classes"], outputs))
    logits = pd.concat(tables)

    validation, test = (select_split(logits, split) for split in splits)
    scores = score_networks(validation, test, descriptions)
    class_scores = {name: score_classes(p, test.labels, test.classes) for name, p in test.probabilities.items()}

    hardest = hardest_with_any_method(validation, test)  # the photos that the report shows
    predicted = {name: predicted_labels(values) for name, values in test.logits.items()}
    images = {
        name: splits["test"].normalised(Normalisation.of(description)) for name, description in descriptions.items()
    }
    heat_maps = explain(networks, images, hardest, predicted)

    with atomic_write() as write_to:
        logits.to_csv(write_to(NETWORK_PREDICTIONS), index=False)
        write_scores(write_to(NETWORK_SCORES), scores)
        write_class_scores(write_to(NETWORK_CLASS_SCORES), class_scores)
        write_to(HEAT_MAPS).write_bytes(save(heat_maps))
        for name in scores:
            kept_epoch = descriptions[name].get("kept_epoch")
            write_json(write_to(network_metrics(name)), {**headline(scores[name]["test"]), "kept_epoch": kept_epoch})
    remove_metrics_except(set(scores))

    to_balance = {
        name: "" if "class_weights" in descriptions[name] else class_weights_key(name, network)
        for name, network in params.networks.items()
    }
    print_scores(test, scores, class_scores, count_classes(photos, "train"), to_balance)


def class_weights_key(name: str, network: Network) -> str:
    """Where params.yaml has the class weights that the network is trained with."""
    return f"networks.{name}.train.class_weights" if "class_weights" in network.train else "train.class_weights"


def remove_metrics_except(names: set[str]) -> None:
    """Delete the metrics of networks that have been removed from params.yaml."""
    for path in NETWORK_METRICS.glob("*.json"):
        if path not in map(network_metrics, names):
            path.unlink()


if __name__ == "__main__":
    run_stage(main)
