"""`make demo`, without the environment that it creates."""

import re
import subprocess
import sys
from pathlib import Path

import run
from tests.support import forked
from tests.support.projects import REPOSITORY, error_line

import pandas as pd
import pytest
import yaml


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

    ensemble = pd.read_csv(folder / "metrics/scores/ensemble.csv").set_index("split").loc["test"]
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


def test_the_demo_uses_its_own_photos_after_a_run_on_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project, demo = tmp_path / "project", tmp_path / "demo"
    project.mkdir()
    run.copy_pipeline(project)
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    params["prepare"] |= {"source": "data/raw/photos", "labels": "mine.csv"}
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.setattr(run, "PROJECT", project)
    run.make_project(demo)
    used = yaml.safe_load((demo / "params.yaml").read_text())["prepare"]
    assert (used["source"], used["labels"]) == ("data/raw/train.zip", "data/labels.csv")
