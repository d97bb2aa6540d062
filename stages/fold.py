"""Train a network without one fold of the photos of train and validation, and predict that fold.

The fold after it chooses the weights that are kept and fits the temperature, as validation does in `train`; the others
train. Reads data/prepared/{train,validation}.safetensors and split.csv; writes metrics/folds/models/NETWORK-FOLD.csv
(the logits of both folds) and NETWORK-FOLD.json (what was kept). folds/dvc.yaml, which tools/folds.py writes, runs it.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

import argparse

from pipeline.core.command_line import ArgumentParser
from pipeline.core.errors import UserError
from pipeline.core.files import atomic_write, require_files, write_json
from pipeline.core.fold_paths import fold_predictions, fold_scores
from pipeline.core.params import Device, LearningRate, Networks, Precision, Section, Threads, find_weights
from pipeline.core.paths import SPLIT_TABLE, packed_split
from pipeline.core.process import run_stage
from pipeline.core.read_params import read_params
from pipeline.core.sections.evaluate import Evaluate
from pipeline.core.sections.train import Train, own_params


class Params(Section):
    """What this stage reads of params.yaml."""

    lr: LearningRate
    device: Device
    precision: Precision
    threads: Threads
    networks: Networks
    train: Train
    evaluate: Evaluate


def read_inputs() -> tuple[argparse.Namespace, Params]:
    """The arguments and the params. Raises UserError if they are wrong, or if an input is missing."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("network", metavar="NETWORK", help="one of the networks in params.yaml, such as resnet18")
    parser.add_argument("fold", type=int, metavar="FOLD", help="the fold to hold out, from 1")
    parser.add_argument("--folds", type=int, required=True, help="how many there are")
    parser.add_argument("--seed", type=int, required=True, help="another one gives other folds")
    arguments = parser.parse_args()
    name, params = arguments.network, read_params(Params)
    if not 1 <= arguments.fold <= arguments.folds:
        parser.error(f"FOLD is {arguments.fold}; expected 1 to {arguments.folds}")
    if name not in params.networks:
        raise UserError(f"{name} is not under networks in params.yaml; run `python tools/folds.py` to update the folds")
    require_files(packed_split("train"), packed_split("validation"), SPLIT_TABLE)
    find_weights(name, params.networks[name].weights)
    return arguments, params.model_copy(update=own_params(name, params.networks[name], params.lr, params.train))


def main() -> None:
    arguments, params = read_inputs()
    name, fold = arguments.network, arguments.fold

    # Slow imports, so not before: mistakes in the inputs should be reported at once.
    from pipeline.core.split_table import read_split_table
    from pipeline.folds.assigning import HELD_OUT, assign_folds, parts_of
    from pipeline.folds.photos import read_parts
    from pipeline.networks.compute import dtype_name, set_up
    from pipeline.networks.distributed import process_group
    from pipeline.networks.live import LiveTables
    from pipeline.networks.predicting import predict_logits, ready_to_predict
    from pipeline.networks.training import Training, check_batch_size
    from pipeline.scores.evaluating import logits_table
    from pipeline.scores.selection import explain_choice

    device, dtype = set_up(params.device, params.precision, params.threads)
    photos = assign_folds(read_split_table(), arguments.folds, arguments.seed)
    part_of = parts_of(photos, fold)
    parts = read_parts(photos, part_of, device)
    photos["split"] = part_of
    train, validation = parts["train"], parts["validation"]
    check_batch_size(params.train, len(train), which=f"that train while fold {fold} is held out")
    print(
        f"{name} without fold {fold} of {arguments.folds}: {len(train)} photos train, {len(validation)} choose, "
        f"{len(parts[HELD_OUT])} are held out, epochs: {params.train.epochs}, {dtype_name(dtype)} on {device.type}",
        flush=True,
    )
    with process_group(device) as processes, LiveTables() as live:  # nothing to watch
        weights = params.networks[name].weights
        training = Training(name, weights, params.lr, params.train, train, validation, dtype, processes, live)
        training.start(None)
        for epoch in range(1, params.train.epochs + 1):
            print(training.run_epoch(epoch), flush=True)
        training.finish()
    classes = train.description["classes"]
    choice = explain_choice(training.curve, training.means, len(classes), params.train, params.lr)
    print(f"{name}: {choice}", flush=True)

    training.network.load_state_dict(training.kept_model()[0])
    network = ready_to_predict(training.network, params.evaluate.test_time_flip, device)
    logits = {
        part: predict_logits(network, parts[part].normalised(training.normalisation), dtype, f"{name} {part}").numpy()
        for part in ("validation", HELD_OUT)
    }
    with atomic_write() as write_to:
        table = logits_table(name, photos, classes, logits)
        table.to_csv(write_to(fold_predictions(name, fold)), index=False)
        write_json(write_to(fold_scores(name, fold)), training.kept_scores())


if __name__ == "__main__":
    run_stage(main)
