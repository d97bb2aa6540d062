"""`make gpu-check`, without the environment that it creates, on a few small synthetic photos and a CPU."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from run import copy_pipeline
from tests.support import forked
from tests.support.projects import REPOSITORY, error_line

import pytest
import yaml


@pytest.fixture
def check(tmp_path: Path) -> Path:
    """The script, in a copy of the project whose params.yaml asks for photos of 32 pixels and batches of 8."""
    project = tmp_path / "project"
    project.mkdir()
    copy_pipeline(project)
    for part in ("bench", "demo"):
        shutil.copytree(REPOSITORY / part, project / part)
    limits = project / "bench/limits.py"
    assert "MEASURED_S = 5, 2.0" in limits.read_text()
    limits.write_text(limits.read_text().replace("MEASURED_S = 5, 2.0", "MEASURED_S = 1, 0.2"))
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    params["prepare"]["image_size"] = 32
    params["precision"] = "float32"
    params["train"] |= {"batch_size": 8, "image_size": None}
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    return project / "bench/gpu_check.py"


@pytest.mark.slow
def test_gpu_check_prints_every_line_and_needs_no_git(check: Path) -> None:
    command = [forked.python(), check, "--photos", "40", "--weights", "resnet18=none"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PATH": ""}, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr

    table = done.stdout.split("pipeline  limit\n")[1].split("\n\n")[0]
    rows = dict(re.split(r"  +", line, maxsplit=1) for line in table.splitlines())
    assert rows.pop("device").startswith("cpu: ")
    assert rows.pop("versions").startswith(f"Python {sys.version.split()[0]}, torch ")
    assert rows.pop("photos") == "24/8/8 of 32 pixels"
    assert rows.pop("training") == "float32, batches of 8, layers: last_half"
    assert re.fullmatch(r"yes, all \d\d files", rows.pop("identical bytes"))
    assert rows.pop("resnet18: epoch kept") == "2 of 2"
    for kind in ("training", "inference"):
        rates = re.fullmatch(r"([\d.]+) +([\d.]+) \((\d+)%\)", rows.pop(f"resnet18: {kind}, images/s"))
        rate, limit, share = map(float, rates.groups())
        assert abs(100 * rate / limit - share) < 2
    assert re.fullmatch(r"\d+% of an epoch", rows.pop("resnet18: outside of steps"))
    assert re.fullmatch(r"\d+ MB resident", rows.pop("resnet18: peak memory of training"))
    assert all(float(second) > 0 for second in rows.pop("archive to ensemble, s").split(" and "))
    assert float(rows.pop("start of a torch stage, s")) > 0
    assert not rows
    check_stages(done.stdout.split("first line  details\n")[1].splitlines())


def check_stages(lines: list[str]) -> None:
    stages = dict(re.split(r"  +", line, maxsplit=1) for line in lines)
    assert list(stages) == ["prepare", "reject", "train resnet18", "evaluate", "ensemble", "report"]
    for stage in stages.values():
        total, first, _, end = re.fullmatch(r"([\d.]+) +([\d.]+)  (.*)end ([\d.]+)", stage).groups()
        assert float(total) >= max(float(first), float(end)) > 0
    for name, part in {"prepare": "decodes at ", "train resnet18": "2 epochs ", "evaluate": "images/s "}.items():
        assert part in stages[name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--photos", "15"], "--photos is 15; expected at least 16, twice train.batch_size"),
        (["--weights", "vgg11"], "--weights is vgg11; expected NETWORK=FILE or NETWORK=none, such as resnet18=none"),
        (["--weights", "resnet18=/none.pth"], "/none.pth does not exist; check the path"),
        (["/none.zip"], "/none.zip does not exist; check the path"),
        (["--fast"], "unrecognized arguments: --fast; see gpu_check.py --help"),
    ],
)
def test_gpu_check_explains_a_mistake_in_one_line(check: Path, arguments: list[str], message: str) -> None:
    done = subprocess.run([forked.python(), check, *arguments], capture_output=True, text=True)
    assert error_line(done) == message


def test_gpu_check_leaves_a_mistake_in_the_photos_to_the_stage(check: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = subprocess.run([forked.python(), check, tmp_path / "empty"], capture_output=True, text=True)
    assert str(tmp_path / "empty") in error_line(done)
