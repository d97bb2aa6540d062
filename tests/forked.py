"""Runs a script in a process that has its slow imports done: torch alone takes longer than most of what is tested.

The processes are forked from one that has imported them and nothing else, so that each is as fresh as a new one.
"""

import multiprocessing
import os
import resource
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

SLOW_IMPORTS = ["torch", "torchvision", "torch.fx.experimental.optimization", "pandas", "scipy.stats", "sklearn"]

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(SLOW_IMPORTS)


def run(
    script: Path, arguments: Iterable[str], folder: Path, env: Mapping[str, str], stdin: str, largest_file: int
) -> subprocess.CompletedProcess:
    """As subprocess.run of `python script arguments` in `folder`, its output as text.

    What Python and PyTorch read from `env` when they start (PYTHONHASHSEED, OMP_NUM_THREADS) has no effect.
    """
    command = [str(script), *arguments]
    with tempfile.TemporaryDirectory() as scratch:
        streams = [Path(scratch, name) for name in ("stdin", "stdout", "stderr")]
        streams[0].write_text(stdin)
        process = context.Process(target=_main, args=(command, folder, dict(env), streams, largest_file))
        process.start()
        process.join(timeout=120)
        if process.is_alive():
            process.kill()
            raise subprocess.TimeoutExpired(command, 120)
        return subprocess.CompletedProcess(command, process.exitcode, *(path.read_text() for path in streams[1:]))


def _main(command: list[str], folder: Path, env: dict[str, str], streams: list[Path], largest_file: int) -> None:
    for number, path in enumerate(streams):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
    sys.stdin = open(0)  # noqa: SIM115 (for good; multiprocessing has put an empty one there)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = command
    sys.path[0] = str(Path(command[0]).parent)
    runpy.run_path(command[0], run_name="__main__")
