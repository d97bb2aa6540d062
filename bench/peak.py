"""Run a script as its own process would run it, and then print the most memory that it used.

Usage: python bench/peak.py SCRIPT [ARGUMENT ...]
The last line is `peak memory: 1234 MB on cuda` (tensors on the accelerator), or `peak memory: 1234 MB resident` (the
whole process, with mapped files) if it used no accelerator or PyTorch cannot tell.
"""

import atexit
import resource
import runpy
import sys
from contextlib import suppress
from pathlib import Path


def main() -> None:
    del sys.argv[0]
    atexit.register(lambda: print(f"peak memory: {on_accelerator() or resident()}", flush=True))
    runpy.run_path(sys.argv[0], run_name="__main__")


def on_accelerator() -> str:
    """The most memory that tensors took on the accelerator, or "" if there were none or PyTorch cannot tell."""
    with suppress(KeyError, AttributeError, RuntimeError):  # no PyTorch here, before 2.9, or not for this device
        accelerator = sys.modules["torch"].accelerator
        if peak := accelerator.max_memory_allocated():
            return f"{peak / 2**20:.0f} MB on {accelerator.current_accelerator().type}"
    return ""


def resident() -> str:
    """The most resident memory of this process."""
    with suppress(FileNotFoundError):  # not on Linux; its getrusage would also count the parent's memory
        kilobytes = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
        return f"{kilobytes / 2**10:.0f} MB resident"
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.0f} MB resident"  # macOS counts bytes


if __name__ == "__main__":
    main()
