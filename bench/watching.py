"""Run a command and measure its time and memory."""

import math
import re
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from run import clean_environment

import psutil

SAMPLING_S = 0.5


def watched(command: list[str], folder: Path) -> tuple[str, float, dict[str, float]]:
    """Run `command`; return its output, its seconds, and its peak memory in MB, by stage and in total (`all`)."""
    start = time.perf_counter()
    log = folder / "output.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=folder, env=clean_environment(), stdout=output)
        with peak_memory(process.pid) as peaks:
            status = process.wait()
    seconds = time.perf_counter() - start
    require_success(status, command, folder)
    text = log.read_text()
    log.unlink()
    return text, seconds, peaks


@contextmanager
def peak_memory(pid: int) -> Iterator[dict[str, float]]:
    """Sample the peak memory until the block ends. Cached file pages, which the system can drop, do not count."""
    peaks: dict[str, float] = defaultdict(float)
    done = threading.Event()

    def sample() -> None:
        root, is_done = psutil.Process(pid), False
        while not is_done:
            now: dict[str, float] = defaultdict(float)
            with suppress(psutil.Error, OSError):  # a process has ended since it was listed
                for process in [root, *root.children(recursive=True)]:
                    memory = private_memory(process)
                    now["all"] += memory
                    if stage := re.search(r"stages/(\w+)\.py", " ".join(process.cmdline())):
                        now[stage[1]] += memory
                for key, memory in now.items():
                    peaks[key] = max(peaks[key], memory)
            is_done = done.wait(SAMPLING_S)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peaks
    finally:
        done.set()
        thread.join()


def private_memory(process: psutil.Process) -> float:
    """A process's memory in MB, its share of shared memory included; without Linux's /proc, all resident memory."""
    try:
        text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    except FileNotFoundError:
        return process.memory_info().rss / 2**20
    return sum(int(kilobytes) for kilobytes in re.findall(r"Pss_(?:Anon|Shmem):\s+(\d+)", text)) / 2**10


def seconds_to(goal: float, command: list[str], folder: Path) -> float:
    """Seconds until `command` prints a validation accuracy of at least `goal`; infinite if it never does."""
    start, seconds = time.perf_counter(), math.inf
    process = subprocess.Popen(command, cwd=folder, env=clean_environment(), stdout=subprocess.PIPE, text=True)
    with process:
        for line in process.stdout or ():
            accuracy = re.search(r"validation accuracy ([\d.]+)", line)
            if accuracy and float(accuracy[1]) >= goal:
                seconds = min(seconds, time.perf_counter() - start)
    require_success(process.returncode, command, folder)
    return seconds


def require_success(status: int, command: list[str], folder: Path) -> None:
    """Exit with an error unless `status` is 0."""
    if status:
        sys.exit(f"error: `{' '.join(command)}` failed in {folder}; see the error above")
