"""Read the stages of dvc.yaml, for the report."""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.core.errors import UserError
from pipeline.core.parse_yaml import parse_yaml
from pipeline.core.paths import CODE, PIPELINE


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
    remaining = read_stages(params, path)
    levels: list[list[Stage]] = []
    while remaining:
        names = {stage.name for stage in remaining}
        level = [stage for stage in remaining if not names & set(stage.after)]
        if not level:
            raise UserError(
                f"{path}: stages depend on each other: {', '.join(stage.name for stage in remaining)}; remove the cycle"
            )
        levels.append(level)
        remaining = [stage for stage in remaining if stage not in level]
    return levels


def read_stages(params: dict, path: Path) -> list[Stage]:
    """The stages in the file's order."""

    def fill_in(text: str) -> str:
        return re.sub(r"\$\{([\w.]+)\}", lambda match: str(params.get(match[1], match[0])), text)

    found = parse_yaml(path.read_text(encoding="utf-8"))["stages"]
    outs = {name: paths_of(stage, "outs", "metrics", "plots") for name, stage in found.items()}
    stages = []
    for name, stage in found.items():
        deps = [fill_in(dep) for dep in paths_of(stage, "deps") if not overlap(dep, CODE.as_posix())]
        stages.append(
            Stage(
                name,
                description=stage.get("desc", ""),
                command=fill_in(str(stage.get("cmd", ""))),
                params=paths_of(stage, "params"),
                reads=deps,
                writes=outs[name],
                after=[other for other in found if other != name and overlap_any(deps, outs[other])],
            )
        )
    return stages


def paths_of(stage: dict, *keys: str) -> list[str]:
    """The paths under `keys`, without DVC's options such as {cache: false}."""
    entries = [entry for key in keys for entry in stage.get(key, [])]
    return [str(entry if isinstance(entry, str) else next(iter(entry))) for entry in entries]


def overlap(one: str, other: str) -> bool:
    """Whether the paths are equal, or one is inside the other."""
    first, second = PurePosixPath(one), PurePosixPath(other)
    return first.is_relative_to(second) or second.is_relative_to(first)


def overlap_any(paths: list[str], others: list[str]) -> bool:
    return any(overlap(path, other) for path in paths for other in others)
