"""Rebuild every result in a scratch folder from the same photos, params and code, and compare it byte for byte.

Run it after `dvc repro`. It writes only to .verify/. If everything is the same it deletes that folder, otherwise it
exits with status 1.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `pipeline` can be imported

import filecmp
import json
import os
import shutil
import subprocess
from typing import Any

from pipeline.core.command_line import read_arguments
from pipeline.core.errors import UserError
from pipeline.core.params import weights_file
from pipeline.core.paths import CORRECTIONS, PARAMS, PIPELINE
from pipeline.core.process import run_stage

import yaml

SCRATCH = Path(".verify")
# Run the stages with this Python, and with the DVC installed next to it or else the one on PATH.
ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def main() -> None:
    read_arguments(__doc__)
    check_status()
    copy_pipeline()
    for arguments in (
        ["init", "--quiet", "--no-scm"],
        ["config", "core.analytics", "false"],
        ["config", "core.check_update", "false"],
        ["config", "cache.type", "reflink,hardlink,copy"],
        ["repro", "--force"],  # even if a shared cache has the results
    ):
        if run_dvc(*arguments, cwd=SCRATCH).returncode != 0:
            raise UserError("the results could not be rebuilt; see the error above")

    findings = {path: compare(path) for path in outputs()}
    print("\n" + "\n".join(f"{finding:<12}  {path}" for path, finding in findings.items()))
    if differing := [path for path, finding in findings.items() if finding != "same"]:
        raise UserError(f"{len(differing)} of {len(findings)} outputs differ; the rebuilt ones are in {SCRATCH}/")
    print(f"All {len(findings)} outputs are the same, byte for byte.")
    shutil.rmtree(SCRATCH)


def check_status() -> None:
    """Raise UserError unless the photos and all results exist and are up to date."""
    done = run_dvc("status", "--json", stdout=subprocess.PIPE)
    if done.returncode:
        raise UserError("`dvc status` failed; see the error above")
    source = yaml.safe_load(PARAMS.read_text(encoding="utf-8"))["prepare"]["source"]
    if not Path(source).exists():
        raise UserError(f"{source}: no such file or folder; the results can only be rebuilt from these photos")
    if json.loads(done.stdout):
        raise UserError("the results are out of date; run `dvc repro` first")


def run_dvc(*arguments: str, **options: Any) -> subprocess.CompletedProcess:
    """Run `dvc` with `options` for subprocess.run; captured output is text. Raises UserError if it is not installed."""
    if not (dvc := shutil.which("dvc", path=ENVIRONMENT["PATH"])):
        raise UserError("dvc is not on PATH; install it (https://dvc.org/doc/install) or activate its environment")
    return subprocess.run([dvc, *arguments], env=ENVIRONMENT, text=True, **options)


def copy_pipeline() -> None:
    """Copy the pipeline and its params, but no results, to SCRATCH; photos and weights are read in place.

    Their paths become absolute, but links are not resolved, because the name of an archive or of weights matters.
    """
    shutil.rmtree(SCRATCH, ignore_errors=True)
    for folder in ("stages", "pipeline"):
        shutil.copytree(folder, SCRATCH / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PIPELINE, SCRATCH)
    (SCRATCH / "data").mkdir()
    shutil.copy(CORRECTIONS, SCRATCH / "data")
    params = yaml.safe_load(PARAMS.read_text(encoding="utf-8"))
    for key in ("source", "labels"):
        params["prepare"][key] = str(Path(params["prepare"][key]).absolute())
    for network in params["networks"].values():
        if file := weights_file(network["weights"]):
            network["weights"] = str(file.absolute())
    (SCRATCH / PARAMS).write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


def outputs() -> list[Path]:
    """Every file that the stages wrote, here or in the scratch folder."""
    stages = yaml.safe_load((SCRATCH / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    found: dict[Path, None] = {}  # an ordered set
    for out in (Path(out["path"]) for stage in stages.values() for out in stage["outs"]):
        for root in (Path(), SCRATCH):
            files = sorted((root / out).rglob("*")) if (root / out).is_dir() else [root / out]
            found |= dict.fromkeys(file.relative_to(root) for file in files)
    return list(found)


def compare(path: Path) -> str:
    """`same`, `different`, `only here` or `only rebuilt`."""
    original, rebuilt = path, SCRATCH / path
    if not (original.exists() and rebuilt.exists()):
        return "only rebuilt" if rebuilt.exists() else "only here"
    return "same" if filecmp.cmp(original, rebuilt, shallow=False) else "different"


if __name__ == "__main__":
    run_stage(main)
