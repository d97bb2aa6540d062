"""`make bench`, without the environment that it creates, on a few small synthetic photos."""

import json
import re
import shutil
import subprocess
from pathlib import Path

from pipeline import tables
from run import copy_pipeline
from tests.support import forked
from tests.support.photos import kaggle_files, write_zip
from tests.support.projects import REPOSITORY, error_line

import pytest
import yaml


@pytest.mark.slow
def test_bench_compares_the_pipeline_with_a_notebook_and_the_hardware_limit(tmp_path: Path) -> None:
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
    script = project / "bench/compare.py"
    large, small = '8192 if device.type == "cuda" else 4096', "512"  # the side of the matrices; takes half a minute
    assert large in script.read_text()
    script.write_text(script.read_text().replace(large, small))
    one_network = [forked.python(), "tools/networks.py", "resnet18"]
    subprocess.run(one_network, cwd=project, capture_output=True, check=True)

    command = [forked.python(), script, folder, "--split", "16", "8", "8", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "16/8/8 photos (synthetic), epochs: 1, batch size 8, rounds: 1; weights: none; " in done.stdout
    values, _, table = done.stdout.partition("16/8/8 photos (synthetic)")  # it may be stopped in between
    assert "archive to ensemble, s: " in values
    assert "archive to ensemble, s" in table
    record = json.loads((folder / "speed.json").read_text())
    assert [key for key in tables.SPEED_KEYS if key not in record] == []
    assert record["made_with"]["precision"] == "float32"
    assert {who: len(values) for who, values in record["measured"]["resnet18: training, images/s"].items()} == {
        "limit": 1,
        "pipeline": 1,
        "notebook": 1,
    }
    rows = {line.split(", images/s")[0].strip(): line for line in done.stdout.splitlines() if ", images/s" in line}
    assert set(rows) == {"resnet18: training", "resnet18: inference"}
    for line in rows.values():
        numbers = r"([\d.]+) +([\d.]+) \(([\d.]+) x\) .*\((\d+)%\)"
        ours, theirs, ratio, share = map(float, re.search(numbers, line).groups())
        assert min(ours, theirs, share) > 0
        assert abs(ours / theirs - ratio) < 0.05 * ratio + 0.01
    for what in ("decode and scale", "archive to ensemble", "peak memory of training", "nothing to do", "exp run -S"):
        assert what in done.stdout


def test_bench_names_a_class_with_too_few_photos(tmp_path: Path) -> None:
    write_zip(tmp_path / "photos.zip", {**kaggle_files(cats=3, dogs=3), "train/cat.3.jpg": b""})
    arguments = [tmp_path / "bench", "--photos", tmp_path / "photos.zip", "--split", "4", "2", "2"]
    done = compare(*arguments)
    assert (
        error_line(done) == f"{tmp_path}/photos.zip: found 3 photos of cat, but --split needs 4; lower it or add photos"
    )


def test_bench_refuses_to_delete_a_folder_that_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    assert error_line(compare(tmp_path)) == (
        f"{tmp_path} was not created by the benchmark; refusing to delete it; use another folder"
    )
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def compare(*arguments: str | Path) -> subprocess.CompletedProcess:
    command = [forked.python(), REPOSITORY / "bench/compare.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True)
