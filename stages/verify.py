"""Rebuild every result in a scratch folder, from the same photos, params and code, and compare it byte by byte.

Usage, from the project's root, after `dvc repro`: python stages/verify.py
Writes .verify/, and deletes it if all is the same; ends with status 1 if not. Nothing else is touched.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out

import filecmp
import json
import os
import shutil
import subprocess
from typing import Any

from catsdogs.errors import UserError
from catsdogs.params import weights_file
from catsdogs.process import run_stage

import yaml

SCRATCH = Path(".verify")
# The stages run with this Python, and with the DVC beside it or else the one on PATH.
ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def main() -> None:
    check_status()
    copy_pipeline()
    for arguments in (
        ["init", "--quiet", "--no-scm"],
        ["config", "cache.type", "reflink,hardlink,copy"],
        ["repro", "--force"],  # even where a cache that several projects share holds what would come out
    ):
        if run_dvc(*arguments, cwd=SCRATCH).returncode != 0:
            raise UserError("the results could not be built anew; the reason stands above")

    findings = {path: compare(path) for path in outputs()}
    print("\n" + "\n".join(f"{finding:<9}  {path}" for path, finding in findings.items()))
    if differing := [path for path, finding in findings.items() if finding != "same"]:
        raise UserError(f"{len(differing)} of {len(findings)} outputs are not the same; the new ones lie in {SCRATCH}/")
    print(f"All {len(findings)} outputs are the same, byte by byte.")
    shutil.rmtree(SCRATCH)


def check_status() -> None:
    """Raise UserError unless all that is to be compared is here, and of the params, code and photos as they are."""
    done = run_dvc("status", "--json", stdout=subprocess.PIPE)
    if done.returncode:
        raise UserError("`dvc status` does not work here; the reason stands above")
    source = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))["source"]
    if not Path(source).exists():
        raise UserError(f"{source}: no such file or folder; it is what all results are to be built from")
    if json.loads(done.stdout):
        raise UserError("what is here is not what params, code and photos now lead to; run `dvc repro` first")


def run_dvc(*arguments: str, **options: Any) -> subprocess.CompletedProcess:
    """Run `dvc` with `options` of subprocess.run; its output, if captured, is text."""
    if not (dvc := shutil.which("dvc", path=ENVIRONMENT["PATH"])):
        raise UserError("dvc is not on PATH; install it (https://dvc.org/doc/install), or activate its environment")
    return subprocess.run([dvc, *arguments], env=ENVIRONMENT, text=True, **options)


def copy_pipeline() -> None:
    """The pipeline, its params and no results; photos and weights are read in place.

    Their paths become absolute, but links are kept: the name of an archive or of weights says what they are.
    """
    shutil.rmtree(SCRATCH, ignore_errors=True)
    shutil.copytree("stages", SCRATCH / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy("dvc.yaml", SCRATCH)
    (SCRATCH / "data").mkdir()
    shutil.copy("data/corrections.txt", SCRATCH / "data")
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    params["source"] = str(Path(params["source"]).absolute())
    for network in params["networks"].values():
        if file := weights_file(network["weights"]):
            network["weights"] = str(file.absolute())
    (SCRATCH / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


def outputs() -> list[Path]:
    """Every file that the stages have written, here or in the scratch folder."""
    stages = yaml.safe_load((SCRATCH / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    found: dict[Path, None] = {}  # a set that keeps its order
    for out in (Path(out["path"]) for stage in stages.values() for out in stage["outs"]):
        for root in (Path(), SCRATCH):
            files = sorted((root / out).rglob("*")) if (root / out).is_dir() else [root / out]
            found |= dict.fromkeys(file.relative_to(root) for file in files)
    return list(found)


def compare(path: Path) -> str:
    here, anew = path, SCRATCH / path
    if not (here.exists() and anew.exists()):
        return "only anew" if anew.exists() else "only here"
    return "same" if filecmp.cmp(here, anew, shallow=False) else "different"


if __name__ == "__main__":
    run_stage(main)
