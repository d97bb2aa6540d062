"""Run every network over validation and test, once, and score it.

Reads models/networks/ and data/prepared/; writes metrics/networks/ (the main scores, one file per network), and the
tables networks.csv in metrics/predictions/ (one row per photo and network), metrics/scores/ and metrics/class_scores/.
`ensemble` and `report` run no network, so it also writes the heat maps that the report shows,
metrics/heat_maps.safetensors: `rows`, the photos' rows in test (int64 [N]), and for each network uint8 [N, height,
width], 255 for the area that supports its prediction most. Networks without a last feature map (ViT) have none.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

import time

from pipeline.core.command_line import read_arguments
from pipeline.core.errors import UserError, list_some
from pipeline.core.files import atomic_write, require_files, write_json
from pipeline.core.params import Device, Networks, Precision, Section, Threads
from pipeline.core.paths import (
    HEAT_MAPS,
    NETWORK_CLASS_SCORES,
    NETWORK_METRICS,
    NETWORK_MODELS,
    NETWORK_PREDICTIONS,
    NETWORK_SCORES,
    SPLIT_TABLE,
    model,
    network_metrics,
    packed_split,
)
from pipeline.core.process import check_first, run_stage
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
    found = {path.stem for path in NETWORK_MODELS.glob("*.safetensors")}
    if missing := names - found:
        name = min(missing)
        raise UserError(
            f"{model(name)} does not exist; run `dvc repro` (if dvc.yaml has no stage train_{name}, first run "
            f"`python tools/networks.py {' '.join(sorted(names))}`)"
        )
    if strays := found - names:
        name = min(strays)
        raise UserError(f"{model(name)} is not for a network in params.yaml; add {name} to networks or delete the file")


if __name__ == "__main__":
    check_first(read_inputs)

from pipeline.core.class_sizes import are_unequal, describe_few, few_to_test_on
from pipeline.core.packed import difference
from pipeline.core.split_table import read_split_table
from pipeline.networks.compute import dtype_name, set_up
from pipeline.networks.dataset import PackedSplit, open_split
from pipeline.networks.explaining import heat_maps
from pipeline.networks.models import load_model
from pipeline.networks.predicting import predict_logits, ready_to_predict, warm_up
from pipeline.scores.hardest import hardest_with_any_method
from pipeline.scores.predictions import Predictions, logit_columns, select_split
from pipeline.scores.scoring import (
    headline,
    predicted_labels,
    score,
    score_classes,
    scores_table,
    write_class_scores,
    write_scores,
)

import pandas as pd
import torch
from safetensors.torch import save
from torch import Tensor, nn

FEW_LISTED = 5  # how many classes with few test photos are printed
HEAT_MAPS_AT_ONCE = 32  # photos
LOGIT_DIGITS = 6  # decimal places; rounded before scoring, so that the table gives the same scores


def main() -> None:
    params = read_inputs()
    device, dtype = set_up(params.device, params.precision, params.threads)
    photos = read_split_table()
    splits = {split: open_split(packed_split(split), device) for split in ("validation", "test")}
    sizes = " and ".join(f"{len(packed)} {split}" for split, packed in splits.items())
    print(f"{sizes} photos, {dtype_name(dtype)} on {device.type}", flush=True)

    tables, networks, kept_epochs = [], {}, {}
    for name in params.networks:
        networks[name], kept_epochs[name] = read_network(name, splits)
        network = ready_to_predict(networks[name], params.evaluate.test_time_flip, device)
        warm_up(network, splits.values(), dtype)
        start = time.perf_counter()
        tables.append(predict(name, network, splits, photos, dtype))
        print(f"{name}: {len(tables[-1]) / (time.perf_counter() - start):.1f} images/s", flush=True)
    logits = pd.concat(tables)
    write_results(logits, explain(networks, logits, splits), kept_epochs)


def read_network(name: str, splits: dict[str, PackedSplit]) -> tuple[nn.Module, int | None]:
    """Load a trained network, and the epoch that `train` kept (None in models of earlier versions).

    Raises UserError if the file contains another network, or one that was trained with other classes or a different
    image size, resize or split, whose training photos may include these test photos.
    """
    network, description = load_model(model(name))
    if description["network"] != name:
        raise UserError(f"{model(name)} contains {description['network']}; expected {name}; run `dvc repro`")
    for split, packed in splits.items():
        different = difference(packed.description, description)
        if different == "classes":
            raise UserError(
                f"{model(name)} was trained for the classes {list_some(description['classes'])}, but "
                f"{packed_split(split)} has {list_some(packed.description['classes'])}; run `dvc repro`"
            )
        if different:
            raise UserError(
                f"{model(name)} was trained with a different {different} than {packed_split(split)} has; run `dvc "
                "repro`"
            )
    return network, description.get("kept_epoch")


def predict(
    name: str, network: nn.Module, splits: dict[str, PackedSplit], photos: pd.DataFrame, dtype: torch.dtype
) -> pd.DataFrame:
    """The network's logits: one row per photo of each split."""
    tables = []
    for split, packed in splits.items():
        logits = predict_logits(network, packed, dtype, f"{name} {split}").numpy().astype("float64")
        rows = photos.loc[photos["split"] == split, ["split", "photo", "label"]].assign(network=name)
        columns = logit_columns(packed.description["classes"])
        tables.append(rows.join(pd.DataFrame(logits.round(LOGIT_DIGITS), rows.index, columns)))
    return pd.concat(tables)


def explain(networks: dict[str, nn.Module], logits: pd.DataFrame, splits: dict[str, PackedSplit]) -> dict[str, Tensor]:
    """The content of metrics/heat_maps.safetensors: where each network looked on the photos that the report shows."""
    test, packed = select_split(logits, "test"), splits["test"]
    rows = torch.from_numpy(hardest_with_any_method(list(test.logits.values()), test.labels))
    tensors = {"rows": rows}
    for name, trained in networks.items():
        network = trained.to(packed.device, memory_format=torch.channels_last)
        predicted = torch.from_numpy(predicted_labels(test.logits[name])[rows]).to(packed.device)
        batches = rows.to(packed.pixels.device).split(HEAT_MAPS_AT_ONCE), predicted.split(HEAT_MAPS_AT_ONCE)
        maps = [heat_maps(network, packed.images(batch), targets) for batch, targets in zip(*batches, strict=True)]
        if maps[0] is None:
            print(f"{name}: no heat maps; it has no last feature map")
        else:
            tensors[name] = torch.cat(maps)
    return tensors


def write_results(logits: pd.DataFrame, heat_maps: dict[str, Tensor], kept_epochs: dict[str, int | None]) -> None:
    """Score every network, write everything, and print the main scores."""
    validation, test = (select_split(logits, split) for split in ("validation", "test"))
    scores = {
        name: {
            "validation": score(validation.probabilities[name], validation.labels),
            "test": score(test.probabilities[name], test.labels),
        }
        for name in test.logits
    }
    class_scores = {name: score_classes(p, test.labels, test.classes) for name, p in test.probabilities.items()}
    with atomic_write() as write_to:
        logits.to_csv(write_to(NETWORK_PREDICTIONS), index=False)
        write_scores(write_to(NETWORK_SCORES), scores)
        write_class_scores(write_to(NETWORK_CLASS_SCORES), class_scores)
        write_to(HEAT_MAPS).write_bytes(save(heat_maps))
        for name in scores:
            write_json(write_to(network_metrics(name)), {**headline(**scores[name]), "kept_epoch": kept_epochs[name]})
    for path in NETWORK_METRICS.glob("*.json"):
        if path.stem not in scores:
            path.unlink()  # left over from a removed network
    unequal = are_unequal(test.photos_by_class.values())
    print(scores_table({name: by_split["test"] for name, by_split in scores.items()}, unequal))
    print_few(test, class_scores)


def print_few(test: Predictions, class_scores: dict[str, pd.DataFrame]) -> None:
    """Name the classes with few test photos, with the intervals of their recall."""
    if not (few := few_to_test_on(test.photos_by_class)):
        return
    shown = list(few)[:FEW_LISTED]
    table = pd.DataFrame({"class": shown, "photos": [few[name] for name in shown]})
    for network, rows in class_scores.items():
        recalls = rows.set_index("class").loc[shown, ["recall", "recall_low", "recall_high"]].to_numpy()
        table[f"recall of {network}"] = [f"{recall:.2f} ({low:.2f} to {high:.2f})" for recall, low, high in recalls]
    others = f"; all classes are in {NETWORK_CLASS_SCORES}" if len(few) > len(shown) else ""
    print(f"note: {describe_few(few)}; the 95 % intervals show how little their recall says{others}:")
    print(table.to_string(index=False))


if __name__ == "__main__":
    run_stage(main)
