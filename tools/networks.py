"""Set which networks are trained, evaluated and combined: their entries in params.yaml, their stages in dvc.yaml.

Usage, from the project's root: python tools/networks.py resnet18, or python tools/networks.py resnet18 mobilenet_v2
Networks that are there already keep their weights and their stage; new ones get torchvision's IMAGENET1K_V1. What a
network left behind that is not named any more is deleted: `git restore . && dvc checkout` brings all of it back.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "stages"))

import argparse
import io
from typing import Any

from catsdogs.errors import UserError
from catsdogs.files import existing, written_whole
from catsdogs.process import run_stage

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

PARAMS, PIPELINE = Path("params.yaml"), Path("dvc.yaml")
TRAIN = "train_"  # what the names of their stages begin with

yaml = YAML()  # keeps comments, order, anchors and style
yaml.width = 120
yaml.indent(mapping=2, sequence=4, offset=2)


def main() -> None:
    names = read_arguments().networks
    params, pipeline = (yaml.load(existing(path).read_text(encoding="utf-8")) for path in (PARAMS, PIPELINE))
    before = list(params["networks"])
    set_networks(params["networks"], names)
    set_stages(pipeline["stages"], names)
    with written_whole() as write_to:
        yaml.dump(params, write_to(PARAMS))
        yaml.dump(pipeline, write_to(PIPELINE))
    for name in before:
        if name not in names:
            for path in results(name):
                path.unlink(missing_ok=True)
    print(f"networks: {', '.join(params['networks'])}; `dvc repro` trains what is new and combines them")


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("networks", nargs="+", metavar="NETWORK", help="torchvision's name, such as resnet18")
    return parser.parse_args()


def set_networks(networks: CommentedMap, names: list[str]) -> None:
    """Drop from `networks`, a section of params.yaml, what is not in `names`, and add what is missing."""
    for name in [*networks]:
        if name not in names:
            del networks[name]
    for name in names:
        if name not in networks:
            networks[name] = CommentedMap(weights="IMAGENET1K_V1")
            networks[name].fa.set_flow_style()


def set_stages(stages: CommentedMap, names: list[str]) -> None:
    """Likewise with the train stages of dvc.yaml; a new one is a copy of the last, for another network."""
    trained = [stage.removeprefix(TRAIN) for stage in stages if stage.startswith(TRAIN)]
    if not trained:
        raise UserError(f"{PIPELINE}: no stage is named {TRAIN}…; run `git restore {PIPELINE}`")
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


def dumped(value: Any) -> str:
    text = io.StringIO()
    yaml.dump(value, text)
    return text.getvalue()


def results(name: str) -> list[Path]:
    """What the train stage of a network writes."""
    return [Path(f"models/{name}.safetensors"), Path(f"metrics/train_{name}.json"), Path(f"metrics/curves/{name}.csv")]


if __name__ == "__main__":
    run_stage(main)
