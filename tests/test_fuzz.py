"""A small part of what `python tests/fuzz.py` does at length."""

import subprocess
import sys

from conftest import REPOSITORY


def test_damaged_photos_archives_and_params_end_well_or_in_one_line() -> None:
    command = [sys.executable, REPOSITORY / "tests/fuzz.py", "1500", "60", "100", "7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("'done': ") == 3  # of each kind some
