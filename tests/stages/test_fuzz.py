"""A short run of tests/support/fuzz.py."""

import subprocess
import sys

from tests.support.projects import REPOSITORY

import pytest

pytestmark = pytest.mark.slow


def test_prepare_succeeds_with_or_refuses_damaged_photos_archives_and_params() -> None:
    command = [sys.executable, REPOSITORY / "tests/support/fuzz.py", "1000", "40", "60", "7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("'done': ") == 3  # some of each kind
