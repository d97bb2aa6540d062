"""Run the stages by hand, in dvc.yaml's order and without DVC, and compare what two such runs wrote."""

import hashlib
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.all_params import Params
from pipeline.core.errors import UserError, list_some
from pipeline.core.paths import METRICS, MODELS, PIPELINE, PREPARED
from pipeline.core.read_params import read_params
from run import PROJECT, clean_environment

import yaml


@dataclass(frozen=True)
class Stage:
    """A finished stage: its seconds, and the lines that it printed, each with the seconds since the stage's start."""

    seconds: float
    lines: list[tuple[float, str]]

    @property
    def output(self) -> str:
        return "\n".join(line for _, line in self.lines)


Chain = dict[str, Stage]  # by name, such as `prepare` and `train resnet18`, in order


def run_chain(folder: Path, params_file: Path) -> Chain:
    """Run every stage of dvc.yaml, except track_code, in `folder`, train.py once for each network in the params."""
    networks = read_params(Params, params_file).networks
    (folder / "data").mkdir(parents=True)
    (folder / "data/corrections.txt").touch()
    shutil.copy(params_file, folder)
    shutil.copy(PROJECT / PIPELINE, folder)  # the report shows it
    stages = yaml.safe_load((PROJECT / PIPELINE).read_text(encoding="utf-8"))["stages"].values()
    chain = {}
    scripts = dict.fromkeys(stage["cmd"].split()[1] for stage in stages)
    del scripts["stages/track_code.py"]  # only DVC needs it
    for script in scripts:
        for arguments in [[name] for name in networks] if script == "stages/train.py" else [[]]:
            name = " ".join([Path(script).stem, *arguments])
            print(f"\n{folder.name} run: {name}", flush=True)
            chain[name] = run_script([script, *arguments], folder)
    return chain


def run_script(command: list[str], folder: Path) -> Stage:
    """Run a stage and show what it prints. If it fails, its own message says why, and this program ends too."""
    start, lines = time.perf_counter(), []
    script, *arguments = command
    python = [sys.executable, "-u", str(PROJECT / "bench/peak.py"), str(PROJECT / script), *arguments]
    with subprocess.Popen(python, cwd=folder, env=clean_environment(), stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            lines.append((time.perf_counter() - start, line.rstrip("\n")))
            print(line, end="", flush=True)
    if process.returncode < 0:
        raise UserError(f"{script} was killed by signal {-process.returncode}; is there enough memory?")
    if process.returncode:
        sys.exit(process.returncode)
    return Stage(time.perf_counter() - start, lines)


def compare_bytes(folder: Path, other: Path) -> str:
    """Whether the chains in both folders wrote the same files with the same bytes; if not, which ones differ."""
    first, second = hashes(folder), hashes(other)
    differing = [name for name in sorted(first | second) if first.get(name) != second.get(name)]
    return f"no: {list_some(differing)}" if differing else f"yes, all {len(first)} files"


def hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file that the stages wrote, by its path in `folder`."""
    paths = [path for part in (PREPARED, MODELS, METRICS) for path in (folder / part).rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
