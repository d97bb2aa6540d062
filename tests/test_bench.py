"""`make bench`, less the environment that it builds, over a few small drawings."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from run import copy_pipeline

import yaml
from conftest import REPOSITORY, error_line, kaggle_files, write_zip


def test_the_benchmark_sets_the_pipeline_beside_a_notebook_and_the_limit(tmp_path: Path) -> None:
    project, folder = tmp_path / "project", tmp_path / "bench"
    project.mkdir()
    copy_pipeline(project)
    for part in ("bench", "demo"):
        shutil.copytree(REPOSITORY / part, project / part)
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    params["prepare"]["image_size"] = 32
    params["precision"] = "float32"
    params["train"]["batch_size"] = 8
    (project / "params.yaml").write_text(yaml.safe_dump(params))

    command = [sys.executable, project / "bench/compare.py", folder, "--split", "16", "8", "8", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "16/8/8 photos, epochs: 1, batch size 8, float32 on cpu" in done.stdout
    rows = {line.split(", images/s")[0].strip(): line for line in done.stdout.splitlines() if ", images/s" in line}
    assert set(rows) == {f"{name}: {kind}" for name in ("resnet18", "resnet34") for kind in ("training", "inference")}
    for line in rows.values():
        numbers = r"([\d.]+) +([\d.]+) \(([\d.]+) x\) .*\((\d+)%\)"
        ours, theirs, ratio, share = map(float, re.search(numbers, line).groups())
        assert min(ours, theirs, share) > 0
        assert abs(ours / theirs - ratio) < 0.05 * ratio + 0.01
    for what in ("decode and scale", "archive to ensemble", "peak memory of training", "nothing to do", "exp run -S"):
        assert what in done.stdout


def test_too_few_photos_for_the_benchmark_are_one_line(tmp_path: Path) -> None:
    write_zip(tmp_path / "photos.zip", {**kaggle_files(cats=3, dogs=3), "train/cat.3.jpg": b""})
    command = [sys.executable, REPOSITORY / "bench/compare.py", tmp_path / "bench", "--photos", tmp_path / "photos.zip"]
    done = subprocess.run([*command, "--split", "4", "2", "2"], capture_output=True, text=True)
    assert error_line(done) == f"{tmp_path}/photos.zip: 3 photos of a cat, --split needs 4"


def test_the_benchmark_deletes_no_folder_that_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    command = [sys.executable, REPOSITORY / "bench/compare.py", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"error: {tmp_path} is no earlier benchmark; it would be deleted: name another folder\n"
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
