"""Run DVC's command, and ask it whether the results are up to date."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError
from pipeline.core.paths import PIPELINE

# Run the stages with this Python, and with the DVC installed next to it or else the one on PATH.
ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def run_dvc(*arguments: str, **options: Any) -> subprocess.CompletedProcess:
    """Run `dvc` with `options` for subprocess.run; captured output is text. Raises UserError if it is not installed."""
    return subprocess.run([find_dvc(), *arguments], env=ENVIRONMENT, text=True, **options)


def start_dvc(*arguments: str, **options: Any) -> subprocess.Popen:
    """As `run_dvc`, with `options` for subprocess.Popen, but do not wait for it."""
    return subprocess.Popen([find_dvc(), *arguments], env=ENVIRONMENT, text=True, **options)


def find_dvc() -> str:
    """The path of the command. Raises UserError if it is not installed."""
    if not (dvc := shutil.which("dvc", path=ENVIRONMENT["PATH"])):
        raise UserError("dvc is not on PATH; install it (https://dvc.org/doc/install) or activate its environment")
    return dvc


def require_up_to_date() -> None:
    """Raise UserError unless all results of the stages in dvc.yaml exist and are up to date."""
    done = run_dvc("status", "--json", PIPELINE.name, stdout=subprocess.PIPE)
    if done.returncode:
        raise UserError("`dvc status` failed; see the error above")
    if json.loads(done.stdout):
        raise UserError("the results are out of date; run `dvc repro` first")
