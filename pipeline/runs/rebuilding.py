"""Rebuild every result in a scratch folder, and compare it with the one here."""

import filecmp
import shutil
from pathlib import Path

from pipeline.core.all_params import Params
from pipeline.core.errors import UserError
from pipeline.core.files import atomic_write, write_json
from pipeline.core.params import weights_file
from pipeline.core.parse_yaml import parse_yaml
from pipeline.core.paths import CORRECTIONS, PARAMS, PIPELINE
from pipeline.core.read_params import read_params
from pipeline.runs.dvc_command import require_up_to_date, run_dvc
from pipeline.runs.fingerprint import count_differing, describe, describe_differing, outputs, read_answers

import yaml

SCRATCH = Path(".verify")
RECORD = Path("verify.json")


def rebuild_and_compare() -> None:
    """Rebuild all results, say which differ, and write verify.json. Raises UserError if some differ."""
    require_source()
    require_up_to_date()
    copy_pipeline()
    for arguments in (
        ["init", "--quiet", "--no-scm"],
        ["config", "core.analytics", "false"],
        ["config", "core.check_update", "false"],
        ["config", "cache.type", "hardlink,copy"],
        ["repro", "--force"],  # even if a shared cache has the results
    ):
        if run_dvc(*arguments, cwd=SCRATCH).returncode != 0:
            raise UserError("the results could not be rebuilt; see the error above")

    findings = {path: compare(path) for path in outputs(SCRATCH)}
    print("\n" + "\n".join(f"{finding:<12}  {path}" for path, finding in findings.items()))
    rebuilt, differ = read_answers(SCRATCH), {}
    for name, answers in read_answers(Path()).items():
        differ[name] = count_differing(answers, rebuilt[name])
    record = describe() | {
        "rebuilt": {path.as_posix(): finding for path, finding in findings.items()},
        "differing_answers": differ,
    }
    with atomic_write() as write_to:
        write_json(write_to(RECORD), record)
    if differing := [path for path, finding in findings.items() if finding != "same"]:
        raise UserError(
            f"{len(differing)} of {len(findings)} outputs differ, and {describe_differing(differ)}; the rebuilt ones "
            f"are in {SCRATCH}/"
        )
    print(f"All {len(findings)} outputs are the same, byte for byte. Others can compare theirs with {RECORD}.")
    shutil.rmtree(SCRATCH)


def require_source() -> None:
    """Raise UserError unless the photos exist."""
    source = read_params(Params).prepare.source
    if not Path(source).exists():
        raise UserError(f"{source}: no such file or folder; the results can only be rebuilt from these photos")


def copy_pipeline() -> None:
    """Copy the pipeline and its params, but no results, to SCRATCH; photos and weights are read in place.

    Their paths become absolute, but links are not resolved, because the names of archives and weights matter.
    """
    shutil.rmtree(SCRATCH, ignore_errors=True)
    for folder in ("stages", "pipeline", "requirements"):
        shutil.copytree(folder, SCRATCH / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (PIPELINE, "requirements.txt"):
        shutil.copy(file, SCRATCH)
    (SCRATCH / "data").mkdir()
    shutil.copy(CORRECTIONS, SCRATCH / "data")
    params = parse_yaml(PARAMS.read_text(encoding="utf-8"))
    for key in ("source", "labels"):
        params["prepare"][key] = str(Path(params["prepare"][key]).absolute())
    for network in params["networks"].values():
        if file := weights_file(network["weights"]):
            network["weights"] = str(file.absolute())
    (SCRATCH / PARAMS).write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


def compare(path: Path) -> str:
    """`same`, `different`, `only here` or `only rebuilt`."""
    original, rebuilt = path, SCRATCH / path
    if not (original.exists() and rebuilt.exists()):
        return "only rebuilt" if rebuilt.exists() else "only here"
    return "same" if filecmp.cmp(original, rebuilt, shallow=False) else "different"
