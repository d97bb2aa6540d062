"""`make demo`, without the environment that it creates."""

import re
import subprocess
import sys
from pathlib import Path

import forked
import pandas as pd
import pytest
from projects import REPOSITORY, error_line


def work_tree() -> str:
    command = ["git", "status", "--porcelain", "--ignored=no"]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_demo_classifies_synthetic_photos_and_changes_nothing_outside_its_folder(tmp_path: Path) -> None:
    before, folder = work_tree(), tmp_path / "demo"
    command = [forked.python(), REPOSITORY / "demo/run.py", folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert work_tree() == before

    ensemble = pd.read_csv(folder / "metrics/ensemble_scores.csv").set_index("split").loc["test"]
    assert ensemble["accuracy"] >= 0.95
    assert ensemble["total"] == 200
    shown = done.stdout.split("Updating lock file")[-1]
    assert re.search(rf"ensemble +{ensemble['accuracy']:.6f} +{ensemble['correct']} +200 ", shown)
    assert "These scores are on synthetic photos" in shown
    for image in (folder / "data/prepared/contact_sheet.png", folder / "metrics/report.html"):
        assert str(image) in shown
        assert image.exists()


def test_demo_refuses_to_delete_a_folder_that_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    done = subprocess.run([sys.executable, REPOSITORY / "demo/run.py", tmp_path], capture_output=True, text=True)
    assert error_line(done) == (f"{tmp_path} was not created by the demo; refusing to delete it; use another folder")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
