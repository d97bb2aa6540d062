"""Compare the pipeline's speed with the usual alternatives and with the hardware limit.

Usage: python bench/compare.py FOLDER [--photos ARCHIVE] [--split TRAIN VALIDATION TEST] [--epochs 1] [--rounds 2]
FOLDER is recreated; nothing outside it is touched. Without --photos, the photos are synthetic and the networks start
from random weights, which measures only speed; with it, the weights are those in params.yaml.

Each round has a different seed. In each, `dvc repro`, the notebook (notebook.py) and, if it is installed, fastai
(fastai_recipe.py) go from the same archive to the ensemble's accuracy with the same recipe, one after the other, and
the hardware limit is measured again. With --photos, the pipeline, torchvision (torchvision_recipe.py) and fastai
(fastai_fine_tune.py) also train the first network, each with its own recipe, until its validation accuracy is 0.98.
The alternatives use the best number of loader workers (workers.py). The table has medians (means for accuracy).
FOLDER/speed.json has all values; as results/speed.json it is what `make tables` puts into docs/speed.md.
"""

import argparse
import importlib.util
import io
import json
import math
import shutil
import statistics
import sys
import time
import zipfile
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

import pandas as pd
import torch
import yaml
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "demo"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from draw import write_archive
from measuring import decoding_rate, inference_rate, training_rates
from pipeline.core.all_params import Params
from pipeline.core.cores import usable_cores
from pipeline.core.errors import UserError
from pipeline.core.files import atomic_write, write_json
from pipeline.core.params import weights_file
from pipeline.core.paths import SPLIT_TABLE, train_stage
from pipeline.core.process import run_stage
from pipeline.core.read_params import read_params
from pipeline.core.split_table import read_split_table
from pipeline.core.tool_paths import RECIPES
from pipeline.editing.recipes import read_recipe, set_values
from pipeline.networks.building import build_network
from pipeline.networks.compute import autocast, set_up
from pipeline.networks.freezing import set_trainable, set_training
from pipeline.photos.decoding import UnreadablePhoto
from pipeline.photos.labels import label_photos
from pipeline.photos.source import PhotoSource
from pipeline.runs.fingerprint import made_with
from pipeline.runs.git import find_commit
from pipeline.tables import FASTAI, LIMIT, NOTEBOOK, OURS, TORCHVISION, describe_benchmark, number, speed_lines
from run import commit, copy_pipeline, git, make_folder
from watching import seconds_to, watched

PROJECT = Path(__file__).resolve().parents[1]
DECODE_LIMIT_PHOTOS = 5000
SPARE = 1.05  # times the photos needed: `prepare` excludes some as copies of others
GOAL = 0.98  # validation accuracy
HAS_FASTAI = importlib.util.find_spec("fastai") is not None
RECIPE = "ensemble-post"  # which the alternatives follow, too
SIZES = ("prepare.image_size", "train.batch_size")  # as in params.yaml, for the alternatives as well

EXPLANATION = """
Medians (means for accuracy). In parentheses, the pipeline's value divided by that one: higher is better for rates,
lower for seconds and memory. The alternatives' rates include decoding, which they repeat in every epoch; the pipeline
decodes once, in `prepare`. Its memory is that of the stage, without DVC's own process. The limit for decoding is one
process per core that only decodes and scales; for `predict`, the networks alone; for a network, its arithmetic at
the rate of one large matrix product in the same precision."""

Measured = dict[tuple[str, str], list[float]]  # (what, by whom) to one value per round


def main() -> None:
    arguments = read_arguments()
    folder = arguments.folder.resolve()
    pipeline, others = folder / "pipeline", folder / "others"
    make_folder(folder, "benchmark")
    classes = write_photos(folder / "photos.zip", arguments.photos, arguments.split)
    make_pipeline(pipeline, arguments, classes)

    measured: Measured = defaultdict(list)
    for seed in range(1, arguments.rounds + 1):
        write_params(pipeline, arguments, classes, seed)
        print(f"round {seed} of {arguments.rounds}", flush=True)
        measure_limits(folder / "photos.zip", pipeline, measured)
        measure_pipeline(pipeline, measured)
        measure_prediction(folder / "photos.zip", pipeline, measured)
        measure_other(NOTEBOOK, "notebook.py", folder / "photos.zip", others, pipeline, measured)
        if HAS_FASTAI:
            measure_other(FASTAI, "fastai_recipe.py", folder / "photos.zip", others, pipeline, measured)
        print_round(measured, seed)
        if arguments.photos:
            write_params(pipeline, arguments, classes, seed, same_recipe=False)
            measure_time_to_goal(folder / "photos.zip", others, pipeline, measured)
            write_params(pipeline, arguments, classes, seed)
    measure_dvc(pipeline, arguments.rounds, measured)
    record = describe(arguments, pipeline, measured)
    with atomic_write() as write_to:
        write_json(write_to(folder / "speed.json"), record)
    print_table(record)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare the pipeline with a notebook and with the hardware limit.")
    parser.add_argument("folder", type=Path, help="where to run; recreated if it is from an earlier benchmark")
    parser.add_argument("--photos", type=Path, help="a zip or folder of labelled photos (default: synthetic photos)")
    sizes = ("TRAIN", "VALIDATION", "TEST")
    parser.add_argument(
        "--split",
        type=int,
        nargs=3,
        default=[320, 96, 96],
        metavar=sizes,
        help="photos in each split (default: 320 96 96)",
    )
    parser.add_argument("--name", help="what speed.json calls the photos, such as 'cats and dogs'")
    parser.add_argument("--note", default="", help="a sentence that the table in docs/speed.md shows with the figures")
    parser.add_argument("--epochs", type=int, default=1, help="epochs of training (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="runs, each with a different seed (default: %(default)s)")
    return parser.parse_args()


def write_photos(archive: Path, source: Path | None, split: list[int]) -> list[str]:
    """Write a zip with enough photos for `split` and some to spare, as many of each class, and return the classes.

    The photos are the first ones of `source`, with the classes of params.yaml, or else synthetic cats and dogs. Raises
    UserError if `source` has too few.
    """
    if source is None:
        write_archive(archive, photos=2 * math.ceil(SPARE * count_needed(split, classes=2)), seed=1)
        return ["cat", "dog"]
    params = read_params(Params, PROJECT / "params.yaml")
    with PhotoSource(source) as photos, zipfile.ZipFile(archive, "w") as subset:
        labelled = photos.photos()
        classes, _ = label_photos(labelled, params.classes, params.prepare.split)
        needed = count_needed(split, len(classes))
        for label, name in enumerate(classes):
            taken = 0
            for photo in labelled:
                if photo.label == label and taken < SPARE * needed:
                    with suppress(UnreadablePhoto):  # Microsoft's copy contains some empty files
                        subset.writestr(f"train/{name}/{taken}{Path(photo.path).suffix}", photos.read(photo))
                        taken += 1
            if taken < needed:
                raise UserError(
                    f"{source}: found {taken} photos of {name}, but --split needs {needed}; lower it or add photos"
                )
    return list(classes)


def count_needed(split: list[int], classes: int) -> int:
    """The photos of each class that splits of these sizes need."""
    return sum(math.ceil(size / classes) for size in split)


def make_pipeline(folder: Path, arguments: argparse.Namespace, classes: list[str]) -> None:
    folder.mkdir()
    copy_pipeline(folder)
    write_params(folder, arguments, classes, seed=1)
    git(folder, "init", "--quiet")
    commit(folder, "The pipeline")


def write_params(
    folder: Path, arguments: argparse.Namespace, classes: list[str], seed: int, same_recipe: bool = True
) -> None:
    """Write params.yaml: with the recipe of the alternatives, or with that of the repository's params.yaml."""
    params = yaml.safe_load((PROJECT / "params.yaml").read_text())
    params["classes"] = classes
    params["prepare"]["source"] = "../photos.zip"
    params["prepare"]["split"] = dict(zip(("train", "validation", "test"), arguments.split, strict=True))
    params["train"]["seed"] = seed
    if same_recipe:
        recipe = read_recipe(RECIPE, PROJECT / RECIPES)
        set_values(params, {key: value for key, value in recipe.items() if key not in SIZES})
        params["train"]["epochs"] = arguments.epochs
        params["networks"] = {name: {"weights": network["weights"]} for name, network in params["networks"].items()}
    for network in params["networks"].values():
        if arguments.photos is None:
            network["weights"] = "none"
        elif file := weights_file(network["weights"]):
            network["weights"] = str(PROJECT / file)
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def measure_pipeline(folder: Path, measured: Measured) -> None:
    """Run `dvc repro` from the archive to the ensemble; the rates are the ones the stages print."""
    output, seconds, peaks = watched(
        [sys.executable, "-m", "dvc", "repro", "--force", "--no-run-cache", "ensemble"], folder
    )
    measured["archive to ensemble, s", OURS].append(seconds)
    measured["peak memory of prepare, MB", OURS].append(peaks["prepare"])
    measured["peak memory of training, MB", OURS].append(peaks["train"])
    measured["decode and scale, photos/s", OURS].append(decoding_rate(output))
    for path in sorted((folder / "metrics/networks").iterdir()):
        name = path.stem
        measured[f"{name}: training, images/s", OURS].append(statistics.mean(training_rates(output, name)))
        measured[f"{name}: inference, images/s", OURS].append(inference_rate(output, name))
        measured[f"{name}: test accuracy", OURS].append(json.loads(path.read_text())["accuracy"])
    ensemble = json.loads((folder / "metrics/ensemble.json").read_text())
    measured["ensemble: test accuracy", OURS].append(ensemble["accuracy"])


def measure_prediction(archive: Path, folder: Path, measured: Measured) -> None:
    """Classify photos of the archive with the trained ensemble, decoding included, and its networks alone."""
    command = [sys.executable, str(PROJECT / "bench/prediction.py"), str(archive)]
    result = json.loads(watched(command, folder)[0])
    measured["ensemble: predict, photos/s", OURS].append(result["rate"])
    measured["ensemble: predict, photos/s", LIMIT].append(result["limit"])


def measure_other(name: str, script: str, archive: Path, folder: Path, pipeline: Path, measured: Measured) -> None:
    """Run an alternative on the same photos in the same splits."""
    unpacking = unpack(archive, folder, pipeline)
    output, seconds, peaks = watched(alternative(script, folder), folder)
    measured["archive to ensemble, s", name].append(unpacking + seconds)
    measured["peak memory of training, MB", name].append(peaks["all"])
    for result in map(json.loads, output.splitlines()):
        network = result["network"]
        measured[f"{network}: test accuracy", name].append(result["accuracy"])
        if "train_rate" in result:
            measured[f"{network}: training, images/s", name].append(result["train_rate"])
            measured[f"{network}: inference, images/s", name].append(result["inference_rate"])


def alternative(script: str, folder: Path) -> list[str]:
    """The command that runs an alternative on the photos in `folder`."""
    return [sys.executable, str(PROJECT / "bench" / script), str(best_workers(folder))]


@cache  # measured once, with the first photos
def best_workers(folder: Path) -> int:
    """The number of loader workers with which the alternatives load the most photos per second."""
    rates = json.loads(watched([sys.executable, str(PROJECT / "bench/workers.py")], folder)[0])
    print("photos/s by number of loader workers:", ", ".join(f"{rates[n]} with {n}" for n in rates), flush=True)
    return int(max(rates, key=rates.get))


def unpack(archive: Path, folder: Path, pipeline: Path) -> float:
    """Write the photos to folder/photos/SPLIT/CLASS/, where the alternatives expect them; returns the seconds."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copy(pipeline / "params.yaml", folder)
    table = read_split_table(pipeline / SPLIT_TABLE)
    start = time.perf_counter()
    with zipfile.ZipFile(archive) as photos:
        for split, label, photo in table.loc[table["split"] != "", ["split", "label", "photo"]].to_numpy().tolist():
            path = folder / "photos" / split / label / Path(photo).name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photos.read(f"train/{photo}"))
    return time.perf_counter() - start


def measure_time_to_goal(archive: Path, folder: Path, pipeline: Path, measured: Measured) -> None:
    """How long each takes from the archive to the first epoch whose validation accuracy reaches GOAL."""
    name = next(iter(read_params(Params, pipeline / "params.yaml").networks))
    what = f"{name}: archive to {GOAL} on validation, s"
    dvc = [sys.executable, "-m", "dvc", "repro", "--force", "--no-run-cache", train_stage(name)]
    measured[what, OURS].append(seconds_to(GOAL, dvc, pipeline))
    unpacking = unpack(archive, folder, pipeline)
    scripts = {TORCHVISION: "torchvision_recipe.py"} | ({FASTAI: "fastai_fine_tune.py"} if HAS_FASTAI else {})
    for other, script in scripts.items():
        measured[what, other].append(unpacking + seconds_to(GOAL, alternative(script, folder), folder))


def measure_limits(archive: Path, pipeline: Path, measured: Measured) -> None:
    """Measure processes that only decode and scale, and how fast a matrix product would do a network's arithmetic."""
    params = yaml.safe_load((pipeline / "params.yaml").read_text())
    size, train = params["prepare"]["image_size"], params["train"]
    measured["decode and scale, photos/s", LIMIT].append(bare_decode_rate(archive, size))
    device, dtype = set_up(params["device"], params["precision"], params["threads"])
    operations_per_s = product_rate(device, dtype)
    for name in params["networks"]:
        classes = len(params["classes"])
        network = build_network(name, "none", classes, train["head_width"], train["dropout"], 1).to(device)
        set_trainable(network, train["layers"])
        set_training(network, train["layers"], train["batchnorm_statistics"])
        images = torch.zeros(2, 3, size, size, device=device)
        with FlopCounterMode(display=False) as training, autocast(device, dtype):
            network(images).sum().backward()
        with FlopCounterMode(display=False) as inference, torch.no_grad(), autocast(device, dtype):
            network(images)
        for kind, counter in (("training", training), ("inference", inference)):
            rate = operations_per_s * len(images) / counter.get_total_flops()
            measured[f"{name}: {kind}, images/s", LIMIT].append(rate)


def bare_decode_rate(archive: Path, size: int) -> float:
    """Photos per second of processes that only decode and scale, one per core."""
    with zipfile.ZipFile(archive) as photos:
        names = photos.namelist()
    names = names[:: math.ceil(len(names) / DECODE_LIMIT_PHOTOS)]
    decode = partial(decode_one, archive, size)
    with ProcessPoolExecutor(usable_cores()) as pool:
        list(pool.map(decode, names[:100]))  # a warm-up
        start = time.perf_counter()
        list(pool.map(decode, names, chunksize=16))
        return len(names) / (time.perf_counter() - start)


def decode_one(archive: Path, size: int, name: str) -> None:
    with Image.open(io.BytesIO(opened(archive).read(name))) as image:
        image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)


@cache
def opened(archive: Path) -> zipfile.ZipFile:
    """The archive, opened once in each process."""
    return zipfile.ZipFile(archive)


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second in a product of two 4096x4096 matrices (8192x8192 on a GPU), the best of three."""
    side = 8192 if device.type == "cuda" else 4096
    matrix = torch.ones(side, side, dtype=dtype, device=device)
    seconds = []
    for _ in range(4):  # the first one is a warm-up
        start = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # waits for a GPU
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds[1:])


def measure_dvc(folder: Path, rounds: int, measured: Measured) -> None:
    """Measure DVC's own time, with stages that take none (stand_in.py) on the same photos and dvc.yaml."""
    dvc = [sys.executable, "-m", "dvc"]
    for script in (folder / "stages").glob("*.py"):
        if script.name != "track_code.py":
            shutil.copy(PROJECT / "bench/stand_in.py", script)
    watched([*dvc, "commit", "--force", "prepare"], folder)  # keep the prepared photos
    watched([*dvc, "repro"], folder)
    for _ in range(rounds):
        measured["`dvc repro`, nothing to do, s", OURS].append(watched([*dvc, "repro"], folder)[1])
    commit(folder, "Stages that take no time")
    for attempt in range(1, rounds + 1):
        seconds = watched([*dvc, "exp", "run", "-S", f"lr=0.01{attempt}"], folder)[1]
        measured["`dvc exp run -S lr=…` without its stages, s", OURS].append(seconds)


def describe(arguments: argparse.Namespace, pipeline: Path, measured: Measured) -> dict:
    """The content of speed.json: what was measured, and with what."""
    params = read_params(Params, pipeline / "params.yaml")
    values: dict[str, dict[str, list[float | None]]] = {}
    for (what, who), found in measured.items():
        values.setdefault(what, {})[who] = [None if math.isinf(value) else value for value in found]
    return {
        "commit": find_commit(),
        "photos": arguments.name or ("real" if arguments.photos else "synthetic"),
        "split": list(arguments.split),
        "epochs": params.train.epochs,
        "batch_size": params.train.batch_size,
        "rounds": arguments.rounds,
        "weights": {name: Path(network.weights).name for name, network in params.networks.items()},
        "cores": usable_cores(),
        "made_with": made_with(params),
        "note": arguments.note,
        "measured": values,
    }


def print_round(measured: Measured, rounds: int) -> None:
    """Print the values of the last of `rounds` so far, which are known then if the benchmark is stopped."""
    for (what, who), values in measured.items():
        if len(values) == rounds:
            print(f"{what}: {number(values[-1])} ({who})", flush=True)


def print_table(record: dict) -> None:
    headings, *lines = speed_lines(record)
    print(f"\n{describe_benchmark(record)}\n")
    print(pd.DataFrame(lines, columns=headings).to_string(index=False, justify="left"))
    print(EXPLANATION)


if __name__ == "__main__":
    run_stage(main)
