"""Read the stages of dvc.yaml, for the report."""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.core.errors import UserError
from pipeline.core.paths import CODE, PIPELINE

import yaml


@dataclass(frozen=True)
class Stage:
    """A stage of dvc.yaml; `after` lists the stages whose outputs it reads, except track_code."""

    name: str
    description: str
    command: str
    params: list[str]
    reads: list[str]  # without data/code/
    writes: list[str]
    after: list[str]


def stage_levels(params: dict, path: Path = PIPELINE) -> list[list[Stage]]:
    """Group the stages into topological levels, substituting ${key} from `params`.

    Raises UserError if stages depend on each other.
    """

    def fill_in(text: str) -> str:
        return re.sub(r"\$\{([\w.]+)\}", lambda match: str(params.get(match[1], match[0])), text)

    found = yaml.safe_load(path.read_text(encoding="utf-8"))["stages"]
    deps = {
        name: [fill_in(dep) for dep in paths_of(stage, "deps") if not overlap(dep, CODE.as_posix())]
        for name, stage in found.items()
    }
    outs = {name: paths_of(stage, "outs", "metrics", "plots") for name, stage in found.items()}
    after = {
        name: [
            other
            for other in found
            if other != name and any(overlap(dep, out) for dep in deps[name] for out in outs[other])
        ]
        for name in found
    }
    stages = {
        name: Stage(
            name,
            stage.get("desc", ""),
            fill_in(str(stage.get("cmd", ""))),
            paths_of(stage, "params"),
            deps[name],
            outs[name],
            after[name],
        )
        for name, stage in found.items()
    }
    steps: list[list[Stage]] = []
    while stages:
        step = [stage for stage in stages.values() if not stages.keys() & set(stage.after)]
        if not step:
            raise UserError(f"{path}: stages depend on each other: {', '.join(stages)}; remove the cycle")
        steps.append(step)
        for stage in step:
            del stages[stage.name]
    return steps


def paths_of(stage: dict, *keys: str) -> list[str]:
    """The paths under `keys`, without DVC's options such as {cache: false}."""
    entries = [entry for key in keys for entry in stage.get(key, [])]
    return [str(entry if isinstance(entry, str) else next(iter(entry))) for entry in entries]


def overlap(one: str, other: str) -> bool:
    """Whether the paths are equal, or one is inside the other."""
    first, second = PurePosixPath(one), PurePosixPath(other)
    return first.is_relative_to(second) or second.is_relative_to(first)
