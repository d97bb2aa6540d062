"""Train one network and keep the weights that are best on validation.

Reads data/prepared/{train,validation}.safetensors; writes models/networks/NETWORK.safetensors,
metrics/train/NETWORK.json, metrics/curves/NETWORK.csv (by epoch) and metrics/steps/NETWORK.csv. The curves grow during
training, and models/networks/NETWORK.checkpoint holds the state that an interrupted run resumes from.
On several GPUs: torchrun --standalone --nproc-per-node 4 stages/train.py NETWORK
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

from pipeline.core.command_line import ArgumentParser
from pipeline.core.errors import UserError
from pipeline.core.files import atomic_write, require_files, write_json
from pipeline.core.params import Device, LearningRate, Networks, Precision, Section, Threads, find_weights
from pipeline.core.paths import checkpoint_file, learning_curve, model, packed_split, step_curve, train_scores
from pipeline.core.process import run_stage
from pipeline.core.read_params import read_params
from pipeline.core.sections.train import Train, own_params


class Params(Section):
    """What this stage reads of params.yaml."""

    lr: LearningRate
    device: Device
    precision: Precision
    threads: Threads
    networks: Networks
    train: Train


def read_inputs() -> tuple[str, Params]:
    """The network's name and its params. Raises UserError if they are wrong, or if an input is missing."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("network", metavar="NETWORK", help="one of the networks in params.yaml, such as resnet18")
    name = parser.parse_args().network
    params = read_params(Params)
    if name not in params.networks:
        raise UserError(f"{name} is not under networks in params.yaml; expected one of {', '.join(params.networks)}")
    require_files(packed_split("train"), packed_split("validation"))
    find_weights(name, params.networks[name].weights)
    return name, params.model_copy(update=own_params(name, params.networks[name], params.lr, params.train))


def main() -> None:
    name, params = read_inputs()

    # Slow imports, so not before: mistakes in the inputs should be reported at once.
    from pipeline.networks.checkpoint import Checkpoint, delete_checkpoint
    from pipeline.networks.compute import dtype_name, set_up
    from pipeline.networks.dataset import open_split
    from pipeline.networks.distributed import process_group
    from pipeline.networks.live import LiveTables
    from pipeline.networks.models import save_model
    from pipeline.networks.training import Training, check_batch_size
    from pipeline.scores.selection import explain_choice

    weights, files = params.networks[name].weights, [packed_split("train"), packed_split("validation")]
    device, dtype = set_up(params.device, params.precision, params.threads)
    curves = (learning_curve(name), step_curve(name))
    with process_group(device) as processes, LiveTables(*curves if processes.is_first else ()) as live:
        train, validation = (open_split(file, device) for file in files)
        check_batch_size(params.train, len(train), processes.count)
        settings = settings_of(name, params, str(dtype), processes.count)
        processes.check_agreement([name, settings, train.description])
        computing = f"{dtype_name(dtype)} on {device.type}"
        processes.report(introduction(name, params, len(train), computing, processes.count))
        training = Training(name, weights, params.lr, params.train, train, validation, dtype, processes, live)
        checkpoint = None
        if processes.is_first and params.train.epochs > 1:  # after a single epoch there is nothing to resume
            checkpoint = Checkpoint(checkpoint_file(name), settings, files, Path(__file__), device)

        training.start(processes.broadcast(checkpoint.load() if checkpoint else None))
        for epoch in range(training.last_epoch + 1, params.train.epochs + 1):
            result = training.run_epoch(epoch)
            if checkpoint and epoch < params.train.epochs:  # after the last one, the results follow at once
                checkpoint.save(training.state_dict())
            processes.report(result)  # only now: a run that is interrupted from here on resumes after this epoch

        training.finish()

        if processes.is_first:
            with atomic_write() as write_to:
                for table, path in zip(training.tables(), curves, strict=True):
                    table.to_csv(write_to(path), index=False)
                write_json(write_to(train_scores(name)), training.kept_scores())
                save_model(write_to(model(name)), *training.kept_model())
            if checkpoint:
                checkpoint.wait()
            delete_checkpoint(checkpoint_file(name))  # also that of an interrupted, longer run

    # Not inside the block: the results stay if nobody reads this, as in `| head`.
    if unequal := training.describe_unequal():
        processes.report(f"{name} on validation: {unequal}")
    classes = len(train.description["classes"])
    choice = explain_choice(training.curve, training.means, classes, params.train, params.lr)
    processes.report(f"{name}: {choice}")


def settings_of(name: str, params: Params, dtype: str, processes: int) -> dict:
    """What a training run must have in common with an interrupted one to resume it."""
    return {
        "weights": params.networks[name].weights,
        "lr": params.lr,
        "precision": dtype,
        "processes": processes,
        **params.train.model_dump(exclude={"launcher"}),
    }


def introduction(name: str, params: Params, photos: int, computing: str, processes: int) -> str:
    """The first lines of output: what is trained, and a note if part of the network would never be trained."""
    several = f", {processes} processes" if processes > 1 else ""
    lines = [f"{name}: {photos} photos, epochs: {params.train.epochs}, {computing}{several}"]
    needed = {"layers": "all", "batchnorm_statistics": "updated"}
    train = params.train
    missing = [f"{train.key(key)} to {value}" for key, value in needed.items() if getattr(train, key) != value]
    if params.networks[name].weights == "none" and missing:
        lines.append(
            f"note: networks.{name}.weights is none, so part of the network stays as it was initialised; set "
            f"{' and '.join(missing)}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run_stage(main)
