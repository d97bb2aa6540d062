"""Set which networks are trained, evaluated and combined, in params.yaml and dvc.yaml.

Existing networks keep their weights and their stage; new ones get torchvision's IMAGENET1K_V1. The results of networks
that are not given are deleted; `git restore . && dvc checkout` restores everything.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

import argparse

from pipeline.core.command_line import ArgumentParser
from pipeline.core.errors import UserError
from pipeline.core.paths import PARAMS, PIPELINE, learning_curve, model, network_metrics, step_curve, train_scores
from pipeline.core.process import run_stage
from pipeline.editing.yaml_files import as_text, parse, read_to_edit, write_edited

from ruamel.yaml.comments import CommentedMap

TRAIN = "train_"  # the prefix of the training stages' names


def read_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("networks", nargs="+", metavar="NETWORK", help="torchvision's name, such as resnet18")
    return parser.parse_args()


def main() -> None:
    names = read_arguments().networks

    from pipeline.networks.building import require_known  # not before: it imports PyTorch, which takes seconds

    for name in names:
        require_known(name)
    params, pipeline = read_to_edit(PARAMS), read_to_edit(PIPELINE)
    removed = {*params["networks"], *trained_networks(pipeline["stages"])} - {*names}
    set_networks(params["networks"], names)
    set_stages(pipeline["stages"], names)
    set_artifacts(pipeline["artifacts"], names, removed)
    set_plots(pipeline.get("plots", []), names)
    write_edited({PARAMS: params, PIPELINE: pipeline})
    for name in removed:
        for path in results(name):
            path.unlink(missing_ok=True)
    print(f"networks: {', '.join(params['networks'])}; run `dvc repro` to train the new ones and combine them all")


def set_networks(networks: CommentedMap, names: list[str]) -> None:
    """Make the section `networks` of params.yaml contain exactly `names`."""
    for name in [*networks]:
        if name not in names:
            del networks[name]
    for name in names:
        if name not in networks:
            networks[name] = CommentedMap(weights="IMAGENET1K_V1")
            networks[name].fa.set_flow_style()


def trained_networks(stages: CommentedMap) -> list[str]:
    """The networks with a training stage in dvc.yaml: one that runs stages/train.py for it."""
    return [
        name.removeprefix(TRAIN)
        for name, stage in stages.items()
        if name.startswith(TRAIN) and f"stages/train.py {name.removeprefix(TRAIN)}" in str(stage.get("cmd"))
    ]


def set_stages(stages: CommentedMap, names: list[str]) -> None:
    """Make dvc.yaml contain exactly the training stages of `names`; a new one is a copy of the last existing one."""
    trained = trained_networks(stages)
    if not trained:
        raise UserError(
            f"{PIPELINE} has no training stage; expected at least one {TRAIN}NETWORK; run `git restore {PIPELINE}`"
        )
    last = trained[-1]
    deps = stages[TRAIN + last]["deps"]
    for name in names:
        if name not in trained:
            stage = parse(as_text(stages[TRAIN + last]).replace(last, name))
            stage["deps"] = deps  # the same list, so that YAML writes an alias
            stages.insert(list(stages).index("evaluate"), TRAIN + name, stage)
    deps.yaml_set_anchor("train_deps", always_dump=True)
    for name in trained:
        if name not in names:
            del stages[TRAIN + name]


def set_artifacts(artifacts: CommentedMap, names: list[str], removed: set[str]) -> None:
    """Make dvc.yaml declare the models of `names` but not those of `removed`; other artifacts stay."""
    removed_paths = {str(model(name)) for name in removed}
    for key in [*artifacts]:
        if artifacts[key].get("path") in removed_paths:
            del artifacts[key]
    for name in names:
        key = name.replace("_", "-")  # DVC does not allow underscores in artifact names
        if key not in artifacts:
            artifacts[key] = CommentedMap(path=str(model(name)), type="model")
            artifacts[key].fa.set_flow_style()


def set_plots(plots: list, names: list[str]) -> None:
    """Make the plots that take a column from each network's curve take it from those of `names`."""
    for plot in plots:
        files = next(iter(plot.values())).get("y") if isinstance(plot, dict) else None
        for curve in (learning_curve, step_curve):
            if isinstance(files, dict) and (shown := [file for file in files if Path(file).parent == curve("").parent]):
                column = files[shown[0]]
                for file in shown:
                    if Path(file).stem not in names:
                        del files[file]
                for name in names:
                    files.setdefault(str(curve(name)), column)


def results(name: str) -> list[Path]:
    """What the stages write for this network alone, in folders that later stages or DVC's metrics read."""
    return [model(name), train_scores(name), learning_curve(name), step_curve(name), network_metrics(name)]


if __name__ == "__main__":
    run_stage(main)
