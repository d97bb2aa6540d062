"""Experiments as DVC's users run them: outside the workspace, in a queue, compared and applied.

The stages are stand-ins that take no time; test_pipeline.py runs real ones under `dvc exp run`.
"""

import csv
import io
import json
import shutil
import time
from pathlib import Path

import pytest
import yaml
from projects import STAGE_NAMES, Repository, stand_in_repository

pytestmark = pytest.mark.slow

RETRAINED = [name for name in STAGE_NAMES if name not in ("prepare", "reject")]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """A repository with committed results, whose archive DVC tracks too. Read only."""
    repository = stand_in_repository(tmp_path_factory.mktemp("template") / "repository")
    repository.dvc("add", "data/raw/train.zip")
    repository.dvc("repro")
    repository.commit()
    return repository


@pytest.fixture
def repository(template: Repository, tmp_path: Path) -> Repository:
    shutil.copytree(template.root, tmp_path / "repository")
    return Repository(tmp_path / "repository")


def shown(repository: Repository) -> dict[str, float]:
    """Each experiment that `dvc exp show` lists, and its learning rate."""
    rows = csv.DictReader(io.StringIO(repository.dvc("exp", "show", "--csv")))
    return {row["Experiment"]: float(row["lr"]) for row in rows if row["typ"].startswith("branch")}


def test_dvc_exp_run_outside_the_workspace_can_be_compared_and_applied(repository: Repository) -> None:
    before = repository.results()
    assert repository.stages_run_by("exp", "run", "--temp", "--name", "slower", "-S", "lr=0.0005") == RETRAINED
    assert repository.results() == before
    assert repository.git("status", "--porcelain") == ""
    assert shown(repository) == {"slower": 0.0005}

    difference = json.loads(repository.dvc("exp", "diff", "HEAD", "slower", "--json"))
    assert difference["params"] == {"params.yaml": {"lr": {"old": 0.001, "new": 0.0005, "diff": -0.0005}}}
    changed = {"metrics/ensemble.json", "metrics/networks/content.json"}
    assert set(difference["metrics"]) == changed

    repository.dvc("exp", "apply", "slower")
    assert yaml.safe_load((repository.root / "params.yaml").read_text())["lr"] == 0.0005
    assert "models/resnet18.safetensors" in {
        path for path, content in repository.results().items() if before[path] != content
    }
    assert set(json.loads(repository.dvc("metrics", "diff", "--json"))) == changed  # against HEAD
    assert json.loads(repository.dvc("params", "diff", "--json")) == difference["params"]
    assert "Data and pipelines are up to date" in repository.dvc("repro")


def test_dvc_queue_tries_one_learning_rate_after_the_other(repository: Repository) -> None:
    assert repository.dvc("exp", "run", "--queue", "-S", "lr=0.0005,0.001,0.002").count("Queued experiment") == 3
    repository.dvc("queue", "start")
    try:
        end = time.monotonic() + 120
        while "Queued" in (status := repository.dvc("queue", "status")) or "Running" in status:
            assert time.monotonic() < end, status
            time.sleep(1)
    finally:
        repository.dvc("queue", "stop", "--kill")
    assert status.count("Success") == 3
    assert sorted(shown(repository).values()) == [0.0005, 0.001, 0.002]
    assert repository.git("status", "--porcelain") == ""


def test_dvc_exp_run_with_an_earlier_learning_rate_trains_nothing(repository: Repository) -> None:
    first = repository.results()
    assert repository.stages_run_by("exp", "run", "-S", "lr=0.0005") == RETRAINED
    second = repository.results()
    assert repository.stages_run_by("exp", "run", "-S", "lr=0.001") == []
    assert repository.results() == first
    assert repository.stages_run_by("exp", "run", "-S", "lr=0.0005") == []
    assert repository.results() == second
