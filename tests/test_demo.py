"""`make demo`, less the environment that it builds."""

import json
import subprocess
import sys
from pathlib import Path

from conftest import REPOSITORY


def work_tree() -> str:
    command = ["git", "status", "--porcelain", "--ignored=no"]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout


def test_the_demo_works_in_a_folder_of_its_own_and_gets_drawings_right(tmp_path: Path) -> None:
    before, folder = work_tree(), tmp_path / "demo"
    command = [sys.executable, REPOSITORY / "demo/run.py", folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert work_tree() == before

    ensemble = json.loads((folder / "metrics/ensemble.json").read_text())
    assert ensemble["accuracy"] >= 0.95
    assert ensemble["total"] == 300
    shown = done.stdout.split("Updating lock file")[-1]
    assert f"{ensemble['accuracy']:.6f}".rstrip("0") in shown
    assert "scores for drawings" in shown
    for picture in (folder / "data/prepared/contact_sheet.png", folder / "metrics/report.html"):
        assert str(picture) in shown
        assert picture.exists()


def test_the_demo_deletes_no_folder_that_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    done = subprocess.run([sys.executable, REPOSITORY / "demo/run.py", tmp_path], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"error: {tmp_path} is no earlier demo; it would be deleted: name another folder\n"
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
