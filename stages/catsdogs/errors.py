"""How a stage ends: with its results; with one line where its user can mend what is wrong; or because it is told to."""

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """Its text is the one line that the user sees: the thing, what was expected, what to do."""


def run_stage(main: Callable[[], None]) -> None:
    """Call `main()`; turn what a user can mend into one line on stderr and status 1.

    Ctrl-C ends `main` with status 130 and SIGTERM with 143, after what was half written is deleted. Under `dvc` the
    stage also ends when that is gone: it would go on writing beside the next `dvc repro`.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if "STAGE_DVC" in os.environ:  # from stages/run
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


def _end_with_dvc() -> None:
    import psutil  # comes with DVC, and is needed with DVC alone

    try:
        dvc = psutil.Process(int(os.environ["STAGE_DVC"]))
        while dvc.is_running() and dvc.status() != psutil.STATUS_ZOMBIE:
            time.sleep(1)
    except psutil.NoSuchProcess:
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _is_out_of_memory(error: Exception) -> bool:
    """PyTorch has an exception of its own for a GPU (a RuntimeError), and none for the CPU."""
    texts = ("CUDA out of memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(text in str(error) for text in texts)
