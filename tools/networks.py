"""Set which networks are trained, evaluated and combined, in params.yaml and dvc.yaml.

Existing networks keep their weights and their stage; new ones get torchvision's IMAGENET1K_V1. The results of networks
that are not given are deleted; `git restore . && dvc checkout` restores everything.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

import argparse
import io
from typing import Any

from pipeline.core.command_line import ArgumentParser
from pipeline.core.errors import UserError
from pipeline.core.files import atomic_write
from pipeline.core.paths import PARAMS, PIPELINE, learning_curve, model, network_metrics, train_scores
from pipeline.core.process import check_first, run_stage


def read_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("networks", nargs="+", metavar="NETWORK", help="torchvision's name, such as resnet18")
    return parser.parse_args()


if __name__ == "__main__":
    check_first(read_arguments)

from pipeline.networks.building import require_known

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

TRAIN = "train_"  # the prefix of the training stages' names

yaml = YAML()  # keeps comments, order, anchors and style
yaml.width = 120
yaml.indent(mapping=2, sequence=4, offset=2)


def main() -> None:
    names = read_arguments().networks
    for name in names:
        require_known(name)
    params, pipeline = load(PARAMS), load(PIPELINE)
    removed = {*params["networks"], *trained_networks(pipeline["stages"])} - {*names}
    set_networks(params["networks"], names)
    set_stages(pipeline["stages"], names)
    set_artifacts(pipeline["artifacts"], names, removed)
    with atomic_write() as write_to:
        yaml.dump(params, write_to(PARAMS))
        yaml.dump(pipeline, write_to(PIPELINE))
    for name in removed:
        for path in results(name):
            path.unlink(missing_ok=True)
    print(f"networks: {', '.join(params['networks'])}; run `dvc repro` to train the new ones and combine them all")


def load(path: Path) -> CommentedMap:
    """The YAML in `path`. Raises UserError if the file does not exist."""
    if not path.exists():
        raise UserError(f"{path} does not exist in {Path.cwd()}; run this from the project's root")
    return yaml.load(path.read_text(encoding="utf-8"))


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
            stage = yaml.load(dumped(stages[TRAIN + last]).replace(last, name))
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


def dumped(value: Any) -> str:
    text = io.StringIO()
    yaml.dump(value, text)
    return text.getvalue()


def results(name: str) -> list[Path]:
    """What the stages write for this network alone, in folders that later stages or DVC's metrics read."""
    return [model(name), train_scores(name), learning_curve(name), network_metrics(name)]


if __name__ == "__main__":
    run_stage(main)
