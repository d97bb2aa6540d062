"""A stage or tool as a process: the Python it runs in, the DVC above it, and how it ends."""

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType

from catsdogs.errors import UserError

OLDEST_PYTHON = (3, 11)
ACTIVATE = "activate the project's environment (source .venv/bin/activate; `make .venv/installed` creates it)"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def run_stage(main: Callable[[], None]) -> None:
    """Call `main()`; turn what a user can fix into one line on stderr and status 1.

    Ctrl-C ends `main` with status 130 and SIGTERM with 143, after half-written files are deleted. Under `dvc` the stage
    also ends when DVC does: it would go on writing beside the next `dvc repro`.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if DVC:
        threading.Thread(target=_end_with_dvc, daemon=True).start()
    try:
        main()
    except UserError as error:
        _exit(str(error))
    except OSError as error:  # no permission, no space left, a file where a folder should be
        way_out = "; make room and run this again" if error.errno in DISK_FULL else ""
        _exit(f"{error.filename or 'input or output'}: {error.strerror or error}{way_out}")
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        _exit(
            "out of memory; close other programs, or lower prepare.image_size or (in training) train.batch_size or "
            "train.image_size"
        )
    except KeyboardInterrupt:
        sys.exit(130)


@contextmanager
def extra_packages(name: str) -> Iterator[None]:
    """For imports that requirements-`name`.txt brings; where they are missing, the program ends with one line."""
    try:
        yield
    except ModuleNotFoundError as error:
        _exit(f"{error.name} is not installed; `pip install -r requirements-{name}.txt` or `make {name}` brings it")


def _exit(text: str) -> None:
    sys.exit("error: " + " ".join(text.splitlines()))  # names of files may hold any character


def _is_out_of_memory(error: Exception) -> bool:
    """PyTorch has an exception of its own for a GPU (a RuntimeError), and none for the CPU."""
    texts = ("CUDA out of memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(text in str(error) for text in texts)


def _explain_missing_package(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """sys.excepthook: `python` is often another one than the one that the packages were installed for."""
    package = (getattr(error, "name", None) or "").partition(".")[0]
    if not issubclass(kind, ModuleNotFoundError) or package in ("", __package__):
        sys.__excepthook__(kind, error, trace)
        return
    print(f"error: {sys.executable} has no package {package}; {ACTIVATE}", file=sys.stderr)


def _find_dvc() -> "psutil.Process | None":  # noqa: F821
    """The DVC that started this process, if one did: the nearest process above it outside any stage."""
    if "DVC_STAGE" not in os.environ:
        return None
    import psutil  # comes with DVC, and is needed with DVC alone

    for process in psutil.Process().parents():  # shells, torchrun, and then DVC, whatever its file is called
        with suppress(psutil.Error):
            environment = process.environ()
            if environment and "DVC_STAGE" not in environment:  # macOS shows none of the system's own programs
                return process
    return None


def _end_with_dvc() -> None:
    import psutil

    with suppress(psutil.NoSuchProcess):
        if DVC.pid == 1 and not any(name in " ".join(DVC.cmdline()) for name in ("dvc", "python")):
            raise psutil.NoSuchProcess(DVC.pid)  # what adopts orphans: DVC was gone before this process looked for it
        while DVC.is_running() and DVC.status() != psutil.STATUS_ZOMBIE:
            time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


if sys.version_info < OLDEST_PYTHON:
    _exit(f"{sys.executable} is Python {sys.version.split()[0]}; expected 3.11 or newer; {ACTIVATE}")
sys.excepthook = _explain_missing_package
DVC = _find_dvc()  # at once: DVC may be gone by the time that the imports of a stage are done
