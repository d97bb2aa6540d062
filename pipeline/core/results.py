"""The results that the tools need, and why one may be missing."""

import json
from contextlib import suppress
from pathlib import Path

from pipeline.core.all_params import Params
from pipeline.core.errors import UserError
from pipeline.core.paths import COMBINATION, NETWORK_MODELS, checkpoint_file, model

LOCK = Path("dvc.lock")
RUNNING = Path(".dvc/tmp/rwlock")  # DVC's list of the files that running stages read and write


def require_ensemble(params: Params) -> None:
    """Raise UserError unless the models and their combination exist."""
    require_results(*map(model, params.networks), COMBINATION)


def require_results(*paths: Path) -> None:
    """Raise UserError if one of these results is missing, with the reason if it can be found."""
    for path in paths:
        if not path.exists():
            raise UserError(_explain_missing(path))


def _explain_missing(path: Path) -> str:
    if running := _running_command():
        return (
            f"{path} does not exist: {running} is in progress, and DVC deletes the results of a stage before it runs; "
            "wait for it to finish"
        )
    restore = f", or `dvc checkout` to restore the one in {LOCK}" if is_in_lock(path) else ""
    if path.parent == NETWORK_MODELS and checkpoint_file(path.stem).exists():
        return f"{path} does not exist: its training was interrupted; run `dvc repro` to resume it{restore}"
    return f"{path} does not exist; run `dvc repro` to create it{restore}"


def _running_command() -> str | None:
    """The `dvc` command that is running a stage here, and its process; None if there is none."""
    import psutil  # imported here, because it is rarely needed; installed with DVC

    with suppress(OSError, ValueError):  # the file is missing, or DVC is just writing it
        for writer in json.loads(RUNNING.read_text(encoding="utf-8")).get("write", {}).values():
            if psutil.pid_exists(writer["pid"]):  # a killed process leaves its entry
                arguments = writer["cmd"].partition(" ")[2]
                return f"`dvc {arguments}` (process {writer['pid']})"
    return None


def is_in_lock(path: Path) -> bool:
    """Whether a finished stage has read or written it."""
    return LOCK.exists() and f"path: {path.as_posix()}\n" in LOCK.read_text(encoding="utf-8")
