"""Process setup: Python version, parent DVC process, exit codes."""

import atexit
import errno
import io
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from pipeline.core.errors import UserError, untrusted_by_git

if TYPE_CHECKING:
    import psutil

OLDEST_PYTHON = (3, 11)
ACTIVATE = "activate the project's environment: `source .venv/bin/activate` (`make install` creates it)"
OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",  # PyTorch
    "std::bad_alloc",
    "ALLOC_FAILED",  # cuBLAS and cuDNN
    "failed to map segment",  # of a shared library
    "terminated abruptly",  # a process of a pool; Linux kills one if memory runs out
)
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# Checked here because older versions cannot evaluate the annotations below. Everything imported before works with them.
if sys.version_info < OLDEST_PYTHON:
    sys.exit(
        f"error: {sys.executable} is Python {sys.version.split()[0]}; expected {'.'.join(map(str, OLDEST_PYTHON))} or "
        f"newer; {ACTIVATE}"
    )


def run_stage(main: Callable[[], None]) -> None:
    """Call `main()`, and turn errors that the user can fix into one line on stderr and exit status 1.

    The exit status is 130 after Ctrl-C, 141 if nobody reads the output any more, and 143 after SIGTERM; partial files
    are deleted first. A stage that DVC started also exits when DVC does, because it would otherwise keep writing while
    the next `dvc repro` runs, and it refuses to run if its code has changed since `track_code` ran. Does not return:
    the process exits after `main()`.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with _explained_errors():
        if DVC:
            threading.Thread(target=_end_with, args=[DVC], daemon=True).start()
            from pipeline.core.code import require_unchanged  # only stages that DVC runs need it

            require_unchanged(Path(sys.argv[0]))
        main()
        _exit_without_freeing()


def _exit_without_freeing() -> None:
    """Exit with status 0 without freeing objects, libraries and a GPU first, as the interpreter would.

    Once PyTorch is imported, that takes about a second, and the system frees everything anyway.
    """
    threading._shutdown()  # pyrefly: ignore[missing-attribute]  # waits for threads that are not daemons, and for executors
    atexit._run_exitfuncs()
    _flush_stdout()
    sys.stderr.flush()
    os._exit(0)


def _flush_stdout() -> None:
    """Write what has been printed, here and not at the interpreter's end, which has its own messages for errors."""
    try:
        if sys.stdout:  # None if it is closed
            sys.stdout.flush()
    except OSError:  # a full disk or a closed pipe
        _exit_if_nobody_reads()
        _discard_stdout()
        raise


def _exit_if_nobody_reads() -> None:
    """Exit without a message, as other programs do, if stdout is a pipe whose reader, such as `head`, has ended."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    if poll.poll(0):
        _discard_stdout()
        sys.exit(128 + signal.SIGPIPE)


def _discard_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _explained_errors() -> Iterator[None]:
    """Turn errors that the user can fix into one line on stderr and exit status 1."""
    try:
        try:
            yield
        finally:
            _flush_stdout()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and sys.stdout:
            _exit_if_nobody_reads()
        if not (lines := _explain(error)):
            raise
        _exit(*lines)


def _explain(error: BaseException) -> tuple[str, ...]:
    """The lines that tell the user about an error; none if the user cannot fix it, so that it must be a bug."""
    if isinstance(error, UserError):
        return error.args
    if _is_out_of_memory(error):
        return (
            "out of memory; close other programs, or lower prepare.image_size or (in training) train.batch_size or "
            "train.image_size",
        )
    if "not owned by current user" in str(error):  # libgit2's message, raised by DVC
        return (untrusted_by_git(),)
    if isinstance(error, BlockingIOError) or "can't start new thread" in str(error):
        return ("too few threads or processes are allowed; close other programs, or raise `ulimit -u` or `ulimit -v`",)
    if isinstance(error, OSError):  # no permission, no space left, a file where a folder should be
        hint = "; free some disk space and run this again" if error.errno in DISK_FULL else ""
        return (f"{error.filename or 'I/O error'}: {error.strerror or error}{hint}",)
    return ()


@contextmanager
def extra_packages(name: str) -> Iterator[None]:
    """Wrap imports of packages from requirements/`name`.txt; exit with a one-line error if one is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        _exit(f"{error.name} is not installed; run `pip install -r requirements/{name}.txt` or `make {name}`")


def _exit(*lines: str) -> None:
    """Exit with status 1 and print each of `lines` as one line on stderr, even if a file name in it has line breaks."""
    sys.exit("\n".join("error: " + " ".join(line.splitlines()) for line in lines))


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out. Libraries raise many kinds of errors for that, recognisable only by their messages."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, RuntimeError | ImportError) and any(text in str(error) for text in OUT_OF_MEMORY)


def _explain_at_import(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """sys.excepthook: explain errors of a script's imports, which come before `run_stage`."""
    package = (getattr(error, "name", None) or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and package not in ("", "pipeline"):  # `python` is often a different one
        lines = (f"package {package} is not installed for {sys.executable}; {ACTIVATE}",)
    else:
        lines = _explain(error)
    if lines:
        print(*(f"error: {line}" for line in lines), sep="\n", file=sys.stderr)
    elif not isinstance(error, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)


def _find_dvc() -> "psutil.Process | None":
    """The DVC process that started this one, if any: the nearest ancestor that is not part of a stage."""
    if "DVC_STAGE" not in os.environ:
        return None
    import psutil  # installed with DVC, and only needed under DVC

    def environment(process: psutil.Process) -> dict[str, str] | None:
        """None if it cannot be read: of another user's process, or of one of macOS's own programs."""
        try:
            found = process.environ()
        except psutil.ZombieProcess:
            return {}
        except psutil.Error:
            return None
        return found if found or sys.platform == "linux" else None  # Linux empties that of a process that is exiting

    # Skip shells and torchrun. Names are not compared, because DVC's executable may have any name.
    ancestors = [process for process in psutil.Process().parents() if "DVC_STAGE" not in (environment(process) or {})]
    if len(ancestors) == 1:  # DVC is PID 1 in a container; or it has exited, and this is the init process
        return ancestors[0]
    return next((process for process in ancestors if environment(process) is not None), None)


def _end_with(dvc: "psutil.Process") -> None:
    """Wait until DVC has exited, then send SIGTERM to this process."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        if dvc.pid == 1 and not any(name in " ".join(dvc.cmdline()) for name in ("dvc", "python")):
            raise psutil.NoSuchProcess(dvc.pid)  # the init process, so DVC has already exited
        while dvc.is_running() and dvc.status() != psutil.STATUS_ZOMBIE:
            time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


sys.excepthook = _explain_at_import
if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors="backslashreplace")  # a terminal's encoding may lack letters of a class or photo
DVC = _find_dvc()  # on import, because DVC may have exited by the time a stage has imported everything else
