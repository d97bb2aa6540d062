"""Set which networks are trained, evaluated and combined, in params.yaml and dvc.yaml; or list them.

Existing networks keep their weights, params and stage; new ones get torchvision's IMAGENET1K_V1, or the first of timm's
weights, and params of their own if the current recipe has some for them. The results of networks that are not given are
deleted; `git restore . && dvc checkout` restores everything. With --list nothing changes, and names may be patterns.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

import argparse
import re
from contextlib import suppress

from pipeline.core.all_params import Params as AllParams
from pipeline.core.command_line import ArgumentParser
from pipeline.core.errors import UserError
from pipeline.core.params import Device, Precision, Section, Threads
from pipeline.core.paths import (
    PARAMS,
    PIPELINE,
    from_disk,
    learning_curve,
    model,
    network_metrics,
    on_disk,
    step_curve,
    train_scores,
    train_stage,
)
from pipeline.core.process import run_stage
from pipeline.core.read_params import read_params
from pipeline.core.sections.prepare import Prepare
from pipeline.editing.recipes import read_own_params, recipe_of
from pipeline.editing.yaml_files import as_text, keep_what_follows, parse, read_to_edit, update, write_edited

from pydantic import ValidationError
from ruamel.yaml.comments import CommentedMap

COLUMNS = "{:32}{:>11}{:>10}  {}"


class Params(Section):
    """What --list reads of params.yaml: how networks run here, and the size of the images."""

    device: Device
    precision: Precision
    threads: Threads
    prepare: Prepare


def read_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "networks", nargs="*", metavar="NETWORK", help="torchvision's name, such as resnet18, or timm/ and timm's name"
    )
    parser.add_argument(
        "--list",
        action="store_true",
        help="list the networks with these names, such as 'resnet*' or 'timm/convnext*', or all of torchvision's, with "
        "their parameters, their speed here and the ImageNet accuracy of their weights",
    )
    arguments = parser.parse_args()
    if not (arguments.networks or arguments.list):
        parser.error("the following arguments are required: NETWORK or --list")
    return arguments


def main() -> None:
    arguments = read_arguments()
    if arguments.list:
        list_networks(arguments.networks)
    else:
        use_networks(arguments.networks)


def list_networks(patterns: list[str]) -> None:
    """Print a line per network, as soon as its speed is measured."""
    params = read_params(Params)

    from pipeline.networks.compute import dtype_name, set_up
    from pipeline.networks.listing import entries, matching_names

    names, size = matching_names(patterns), params.prepare.image_size
    device, dtype = set_up(params.device, params.precision, params.threads)
    print(f"images/s: inference at {size} pixels a side, {dtype_name(dtype)} on {device.type}; training takes longer")
    print(COLUMNS.format("network", "parameters", "images/s", "weights, with their accuracy on ImageNet in %"))
    for entry in entries(names, size, device, dtype):
        weights = [f"{name} {accuracy:.1f}" if accuracy else name for name, accuracy in entry.weights.items()]
        rate = describe_rate(entry.images_per_s) if entry.images_per_s else f"not {size}"
        parameters = f"{entry.parameters / 1e6:.1f} M"
        print(COLUMNS.format(entry.name, parameters, rate, ", ".join(weights) or "none"), flush=True)


def describe_rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}" if rate >= 1 else f"{rate:.2g}"


def use_networks(names: list[str]) -> None:
    """Make params.yaml and dvc.yaml contain exactly these networks."""
    from pipeline.networks.building import require_known  # not before: it imports PyTorch, which takes seconds

    for name in names:
        require_known(name)
    params, pipeline = read_to_edit(PARAMS), read_to_edit(PIPELINE)
    before = [*params["networks"]]
    removed = {*before, *trained_networks(pipeline["stages"]), *scored_networks()} - {*names}
    with keep_what_follows(params, "networks"):
        set_networks(params["networks"], names, find_own_params())
    set_stages(pipeline["stages"], names)
    set_artifacts(pipeline["artifacts"], names, removed)
    set_plots(pipeline.get("plots", []), names)
    write_edited({PARAMS: params, PIPELINE: pipeline})
    for name in removed:
        for path in results(name):
            path.unlink(missing_ok=True)
    print(f"networks: {', '.join(params['networks'])}; {what_next(before, [*params['networks']])}")
    for name in names:
        if name not in before and len(params["networks"][name]) > 1:
            print(f"note: {name} has its own lr or train, from the recipe in use; see docs/networks.md")


def what_next(before: list[str], after: list[str]) -> str:
    """What to do after the networks in params.yaml have changed."""
    if new := [name for name in after if name not in before]:
        return f"run `dvc repro` to train {', '.join(new)} and update the results"
    return "nothing has changed" if before == after else "run `dvc repro` to update the results; none has to be trained"


def find_own_params() -> dict[str, dict]:
    """What the recipe in use has for single networks, by network; nothing if the params are those of no recipe."""
    with suppress(UserError, ValidationError):  # a mistake in params.yaml or a recipe must not prevent the change
        if recipe := recipe_of(read_params(AllParams)):
            return read_own_params(recipe)
    return {}


def set_networks(networks: CommentedMap, names: list[str], own: dict[str, dict]) -> None:
    """Make the section `networks` of params.yaml contain exactly `names`; new ones have their values in `own`."""
    from pipeline.networks.from_timm import is_timms, timms_weights

    for name in [*networks]:
        if name not in names:
            del networks[name]
    for name in names:
        if name not in networks:
            weights = next(iter(timms_weights(name)), "none") if is_timms(name) else "IMAGENET1K_V1"
            networks[name] = CommentedMap(weights=weights)
            update(networks, name, remove=(), add=own.get(name, {}))


def trained_networks(stages: CommentedMap) -> list[str]:
    """The networks with a training stage in dvc.yaml: one that runs stages/train.py for it."""
    commands = {stage: re.search(r"stages/train\.py (\S+)", str(of.get("cmd"))) for stage, of in stages.items()}
    return [found[1] for stage, found in commands.items() if found and stage == train_stage(found[1])]


def scored_networks() -> list[str]:
    """The networks that were evaluated. git leaves the scores of one that was never committed."""
    return [from_disk(path.stem) for path in Path().glob(str(network_metrics("*")))]


def set_stages(stages: CommentedMap, names: list[str]) -> None:
    """Make dvc.yaml contain exactly the training stages of `names`; a new one is a copy of the last existing one."""
    trained = trained_networks(stages)
    if not trained:
        raise UserError(
            f"{PIPELINE} has no training stage; expected at least one, {train_stage('NETWORK')}; run `git restore "
            f"{PIPELINE}`"
        )
    last = trained[-1]
    deps = stages[train_stage(last)]["deps"]
    for name in names:
        if name not in trained:
            stage = parse(as_text(stages[train_stage(last)]).replace(last, name))
            stage["deps"] = deps  # the same list, so that YAML writes an alias
            files = as_text(stages[train_stage(last)]["outs"]).replace(on_disk(last), on_disk(name))
            stage["outs"] = parse(files)
            stages.insert(list(stages).index("evaluate"), train_stage(name), stage)
    deps.yaml_set_anchor("train_deps", always_dump=True)
    for name in trained:
        if name not in names:
            del stages[train_stage(name)]


def set_artifacts(artifacts: CommentedMap, names: list[str], removed: set[str]) -> None:
    """Make dvc.yaml declare the models of `names` but not those of `removed`; other artifacts stay."""
    removed_paths = {str(model(name)) for name in removed}
    for key in [*artifacts]:
        if artifacts[key].get("path") in removed_paths:
            del artifacts[key]
    for name in names:
        key = on_disk(name).replace("_", "-")  # DVC does not allow underscores in artifact names
        if key not in artifacts:
            artifacts[key] = CommentedMap(path=str(model(name)), type="model")
            artifacts[key].fa.set_flow_style()


def set_plots(plots: list, names: list[str]) -> None:
    """Make the plots that take a column from each network's curve take it from those of `names`."""
    for plot in plots:
        files = (next(iter(plot.values())) or {}).get("y") if isinstance(plot, dict) else None
        for curve in (learning_curve, step_curve):
            if isinstance(files, dict) and (shown := [file for file in files if Path(file).parent == curve("").parent]):
                column = files[shown[0]]
                for file in shown:
                    if Path(file) not in map(curve, names):
                        del files[file]
                for name in names:
                    files.setdefault(str(curve(name)), column)


def results(name: str) -> list[Path]:
    """What the stages write for this network alone, in folders that later stages or DVC's metrics read."""
    return [model(name), train_scores(name), learning_curve(name), step_curve(name), network_metrics(name)]


if __name__ == "__main__":
    run_stage(main)
