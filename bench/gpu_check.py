"""Check the pipeline on this machine's GPU: are its results the same twice, and is it as fast as the GPU allows?

Runs every stage twice, in dvc.yaml's order, with the params of params.yaml and two epochs. Then it repeats one step of
training and one of inference on a batch that stays on the device: the limit for these steps. It prints a table, needs
no DVC, git or network, writes only to .gpu-check/, and takes less than ten minutes. Without a GPU it does the same on
the CPU, with fewer photos.
"""

import argparse
import platform
import re
import shutil
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "demo"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from chain import Chain, Stage, compare_bytes, run_chain
from draw import write_archive
from limits import difference_of_graph, inference_limit, training_limit
from measuring import inference_rate, training_rates
from pipeline.core.all_params import Params
from pipeline.core.command_line import ArgumentParser
from pipeline.core.errors import UserError
from pipeline.core.files import read_json
from pipeline.core.paths import PARAMS, PREPARE_SUMMARY, packed_split, train_scores
from pipeline.core.process import run_stage
from pipeline.core.read_params import read_params
from pipeline.networks.compute import dtype_name, set_up
from pipeline.networks.dataset import open_split
from pipeline.networks.devices import hardware_name
from pipeline.tables import number
from run import PROJECT, make_folder

import torch
import torchvision
import yaml

FOLDER = PROJECT / ".gpu-check"
FIRST, SECOND = FOLDER / "first", FOLDER / "second"
SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}
EPOCHS = 2  # the first one is also a warm-up; the table shows the last one
STAGE_WIDTH = 24
DRAWN, DRAWN_ON_CPU = 4000, 200  # photos, by default

EXPLANATION = """
limit: the same step, without augmentation, on one batch that stays on the device; in parentheses, the pipeline's share
of it. Training is that of the last epoch; outside of its steps are validation and shuffling. The start of a torch stage
lasts until its first line: it imports PyTorch, opens the photos and builds the network. If the epoch kept is 0, the
fitted head, then only the learning curve shows whether training is the same twice. The stages' times are those of the
second run, when Python has compiled what it imports; a stage's end lasts from its last line until its process is
gone."""

Row = tuple[str, ...]  # what, the pipeline's value, and sometimes the limit


def main() -> None:
    arguments = read_arguments()
    make_folder(FOLDER, "gpu-check")
    write_inputs(arguments)
    params = read_params(Params, FOLDER / PARAMS)
    runs = [run_chain(folder, FOLDER / PARAMS) for folder in (FIRST, SECOND)]
    print_table([*describe(params), *summarise(runs), *measure_networks(runs[0], params)])
    print_stages(runs[1])


def read_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("archive", type=Path, nargs="?", help="photos as params.yaml expects (default: synthetic ones)")
    drawn = f"{DRAWN}, on a CPU {DRAWN_ON_CPU}"
    parser.add_argument("--photos", type=int, help=f"use N of the archive (default: all) or draw N (default: {drawn})")
    parser.add_argument(
        "--weights",
        action="append",
        metavar="NETWORK=FILE",
        help="a network to check and its weights, or none; repeatable (default: those of params.yaml, with none)",
    )
    return parser.parse_args()


def write_inputs(arguments: argparse.Namespace) -> None:
    """Write params.yaml, made from the repository's, the table of labels and, if no archive is given, the photos."""
    archive, photos = arguments.archive, arguments.photos
    params = yaml.safe_load((PROJECT / PARAMS).read_text(encoding="utf-8"))
    labels = PROJECT / params["prepare"]["labels"]
    params["networks"] = read_weights(arguments.weights or [f"{name}=none" for name in params["networks"]])
    params["train"]["epochs"] = EPOCHS
    if {"weights": "none"} in params["networks"].values():
        params["train"]["head_init"] = "random"  # no fitted head that may be kept instead of the last epoch
    needed = 2 * params["train"]["batch_size"]  # train, with 0.6 of them, then has a whole batch
    if photos is not None and photos < needed:
        raise UserError(f"--photos is {photos}; expected at least {needed}, twice train.batch_size")
    params["prepare"] |= {"source": "../photos.zip", "labels": "../labels.csv", "split": SHARES}
    if archive:
        params["prepare"]["source"] = str(require_exists(archive))
        if photos:
            params["prepare"]["split"] = {split: int(share * photos) for split, share in SHARES.items()}
        shutil.copy(labels, FOLDER / "labels.csv")
    else:
        has_gpu = params["device"] != "cpu" and torch.accelerator.is_available()
        photos = photos or (DRAWN if has_gpu else DRAWN_ON_CPU)
        params["classes"] = ["cat", "dog"]
        print(f"drawing {photos} synthetic photos", flush=True)
        write_archive(FOLDER / "photos.zip", photos, seed=1)
        (FOLDER / "labels.csv").write_text("photo,label\n")
    (FOLDER / PARAMS).write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


def read_weights(arguments: list[str]) -> dict[str, dict[str, str]]:
    """The section `networks` of params.yaml, from texts such as `resnet18=weights.pth`. Raises UserError."""
    networks = {}
    for argument in arguments:
        name, _, weights = argument.partition("=")
        if not (name and weights):
            raise UserError(f"--weights is {argument}; expected NETWORK=FILE or NETWORK=none, such as resnet18=none")
        networks[name] = {"weights": weights if weights == "none" else str(require_exists(Path(weights)))}
    return networks


def require_exists(path: Path) -> Path:
    """The absolute path of a file or folder. Raises UserError if it does not exist."""
    if not path.expanduser().exists():
        raise UserError(f"{path} does not exist; check the path")
    return path.expanduser().resolve()


def describe(params: Params) -> Iterator[Row]:
    """The rows on what is measured."""
    device, dtype = set_up(params.device, params.precision, params.threads)
    yield "device", f"{device.type}: {hardware_name(device)}"
    cuda = f", CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}" if device.type == "cuda" else ""
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}"
    yield "versions", versions + cuda
    summary = read_json(FIRST / PREPARE_SUMMARY)
    yield "photos", f"{'/'.join(str(summary[split]) for split in SHARES)} of {params.prepare.image_size} pixels"
    yield "training", f"{dtype_name(dtype)}, batches of {params.train.batch_size}, layers: {params.train.layers}"


def summarise(runs: list[Chain]) -> Iterator[Row]:
    """The rows on the whole chain."""
    yield "identical bytes", compare_bytes(FIRST, SECOND)
    seconds = [sum(run[name].seconds for name in list(run)[: list(run).index("ensemble") + 1]) for run in runs]
    yield "archive to ensemble, s", " and ".join(map(number, seconds))
    starts = [stage.lines[0][0] for run in runs for name, stage in run.items() if name.startswith("train ")]
    yield "start of a torch stage, s", number(statistics.median(starts))


def measure_networks(run: Chain, params: Params) -> Iterator[Row]:
    """The rows on each network: rates and their limits, the time outside of steps, and memory."""
    device, dtype = set_up(params.device, params.precision, params.threads)
    train = open_split(FIRST / packed_split("train"), device)
    others = {torch.float32, torch.bfloat16} - {dtype} if device.type != "cpu" else ()  # may be very slow on a CPU
    for name in params.networks:
        print(f"\nmeasuring the limits of {name}", flush=True)
        stage = run[f"train {name}"]
        training, inference = training_rates(stage.output, name)[-1], inference_rate(run["evaluate"].output, name)
        for kind, rate, limit in (("training", training, training_limit), ("inference", inference, inference_limit)):
            fastest = limit(name, params, train, dtype)
            yield f"{name}: {kind}, images/s", number(rate), f"{number(fastest)} ({rate / fastest:.0%})"
            for other in others:
                yield f"{name}: {kind} in {dtype_name(other)}, images/s", "", number(limit(name, params, train, other))
        if device.type == "cuda":
            difference = difference_of_graph(name, params, train, dtype)
            yield (
                f"{name}: graph and single kernels",
                "the same weights" if difference == 0 else f"differ by {difference}",
            )
        *_, start, end = (second for second, line in stage.lines if line.startswith(f"{name} epoch "))
        steps_s = len(train) // params.train.batch_size * params.train.batch_size / training
        yield f"{name}: outside of steps", f"{1 - steps_s / (end - start):.0%} of an epoch"
        kept = read_json(FIRST / train_scores(name))["kept_epoch"]
        yield f"{name}: epoch kept", f"{kept} of {EPOCHS}"
        yield f"{name}: peak memory of training", stage.lines[-1][1].removeprefix("peak memory: ")


def print_stages(run: Chain) -> None:
    """Print the seconds of each stage: in total, until its first line, and for some of its parts."""
    print(f"{'stage, s':{STAGE_WIDTH}}   total  first line  details")
    for name, stage in run.items():
        print(f"{name:{STAGE_WIDTH}}{stage.seconds:8.2f}{stage.lines[0][0]:12.2f}  {', '.join(parts(name, stage))}")


def parts(name: str, stage: Stage) -> Iterator[str]:
    """The rates and seconds of some parts of a stage."""
    lines = stage.lines[:-1]  # without the peak memory
    if rate := re.search(r"([\d.]+) photos/s", stage.output):
        yield f"decodes at {rate[1]} photos/s"
    if epochs := [second for second, line in lines if re.search(r" epoch \d+/", line)]:
        begin, *ends = epochs if len(epochs) > EPOCHS else (lines[0][0], *epochs)
        if len(epochs) > EPOCHS:
            yield f"fitted head {begin - lines[0][0]:.2f}"
        yield f"{EPOCHS} epochs {ends[-1] - begin:.2f}"
    if rates := re.findall(r"^(\w+): ([\d.]+) images/s", stage.output, re.MULTILINE):
        yield "images/s " + ", ".join(f"{rate} {network}" for network, rate in rates)
    yield f"end {stage.seconds - lines[-1][0]:.2f}"


def print_table(rows: list[Row]) -> None:
    width = max(len(row[0]) for row in rows)
    print()
    for what, *values in [("", "pipeline", "limit"), *rows]:
        print("  ".join([f"{what:{width}}", *(f"{value:8}" for value in values)]).rstrip())
    print(EXPLANATION)


if __name__ == "__main__":
    run_stage(main)
