"""Experiments as DVC's users run them: outside the workspace, in a queue, compared and applied.

The stages are stand-ins that take no time; test_pipeline.py runs real ones under `dvc exp run`.
"""

import csv
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.support.projects import STAGE_NAMES, Repository, add_to_stand_in, error_line
from tests.support.waiting import wait_for

import pytest
import yaml

pytestmark = pytest.mark.slow

RETRAINED = [name for name in STAGE_NAMES if name not in ("track_code", "prepare", "reject")]


@pytest.fixture
def repository(stand_ins: Repository) -> Repository:
    return stand_ins


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
    assert "models/networks/resnet18.safetensors" in {
        path for path, content in repository.results().items() if before[path] != content
    }
    assert set(json.loads(repository.dvc("metrics", "diff", "--json"))) == changed  # against HEAD
    assert json.loads(repository.dvc("params", "diff", "--json")) == difference["params"]
    assert "Data and pipelines are up to date" in repository.dvc("repro")


# Added to a stage: it waits until two stages run at the same time, and each leaves the name of its GPU.
MEET = """
import os
folder = Path(os.environ["MEETING"])
(folder / os.environ["CUDA_VISIBLE_DEVICES"]).touch()
for _ in range(600):
    if len(list(folder.iterdir())) == 2:
        break
    time.sleep(0.1)
else:
    sys.exit("the other worker did not come")
"""


def test_dvc_queue_runs_two_experiments_at_once_each_worker_with_its_own_gpu(
    repository: Repository, tmp_path: Path
) -> None:
    add_to_stand_in(repository.root / "stages/evaluate.py", MEET)
    repository.commit()
    (tmp_path / "meeting").mkdir()
    repository.environment |= {"MEETING": str(tmp_path / "meeting")}
    assert repository.dvc("exp", "run", "--queue", "-S", "lr=0.0005,0.002").count("Queued experiment") == 2
    try:
        for gpu, workers in (("0", 1), ("1", 2)):  # as docs/gpus.md says
            repository.environment |= {"CUDA_VISIBLE_DEVICES": gpu}
            repository.dvc("queue", "start", "--jobs", str(workers))
            wait_for_status(
                repository, lambda status, number=workers: f"{number} active" in status or status.count("Success") == 2
            )
        status = wait_for_status(repository, lambda status: "Queued" not in status and "Running" not in status)
    finally:
        repository.dvc("queue", "stop", "--kill")
    assert status.count("Success") == 2
    assert {path.name for path in (tmp_path / "meeting").iterdir()} == {"0", "1"}
    assert sorted(shown(repository).values()) == [0.0005, 0.002]
    assert repository.git("status", "--porcelain") == ""


def wait_for_status(repository: Repository, is_reached: Callable[[str], bool]) -> str:
    """What `dvc queue status` prints once `is_reached`."""
    printed = [""]

    def reached() -> bool:
        printed[0] = repository.dvc("queue", "status")
        return is_reached(printed[0])

    wait_for(reached, seconds=120, pause=0.5)
    return printed[0]


def test_dvc_exp_run_with_an_earlier_learning_rate_trains_nothing(repository: Repository) -> None:
    first = repository.results()
    assert repository.stages_run_by("exp", "run", "-S", "lr=0.0005") == RETRAINED
    second = repository.results()
    assert repository.stages_run_by("exp", "run", "-S", "lr=0.001") == []
    assert repository.results() == first
    assert repository.stages_run_by("exp", "run", "-S", "lr=0.0005") == []
    assert repository.results() == second


def test_an_experiment_in_a_fresh_shallow_clone_is_recorded(repository: Repository, tmp_path: Path) -> None:
    """Without the results of the stages that do not run: they are not in DVC's cache there."""
    clone = Repository(tmp_path / "clone")
    clone.git("clone", "--quiet", "--depth", "1", f"file://{repository.root}", ".")
    shutil.copy(repository.root / "data/raw/train.zip", clone.root / "data/raw/train.zip")
    assert clone.stages_run_by("exp", "run", "--name", "other", "-S", "prepare.seed=8", "prepare") == ["prepare"]
    assert "other" in clone.dvc("exp", "list")


# Put before a stage's own code: it asks for a prediction while DVC runs the stage, and fails.
ASK_AND_FAIL = """
import subprocess, sys
sys.exit(subprocess.run([sys.executable, "tools/predict.py", "a.jpg"], stderr=open("answer.txt", "w")).returncode)
"""


def test_predict_says_why_there_is_no_model_during_a_run_and_after_a_failed_one(repository: Repository) -> None:
    script = repository.root / "stages/train.py"
    script.write_text(ASK_AND_FAIL + script.read_text())
    assert repository.try_dvc("exp", "run", "-S", "lr=0.0005").returncode != 0
    assert re.fullmatch(
        r"error: models/networks/resnet18.safetensors does not exist: `dvc exp run -S lr=0.0005` \(process \d+\) is in "
        r"progress, and DVC deletes the results of a stage before it runs; wait for it to finish\n",
        (repository.root / "answer.txt").read_text(),
    )
    assert error_line(repository.run("predict.py", "a.jpg")) == (
        "models/networks/resnet18.safetensors does not exist; run `dvc repro` to create it, or `dvc checkout` to "
        "restore the "
        "one in dvc.lock"
    )
    (repository.root / "models/networks/resnet18.checkpoint").touch()
    assert error_line(repository.run("predict.py", "a.jpg")) == (
        "models/networks/resnet18.safetensors does not exist: its training was interrupted; run `dvc repro` to resume "
        "it, or "
        "`dvc checkout` to restore the one in dvc.lock"
    )
    repository.dvc("checkout")
    assert (repository.root / "models/networks/resnet18.safetensors").exists()


# Added to the stand-ins: scores that rank in one way on validation and in the other on test, models that are the same
# for low rates, and validation photos that depend on the seed.
SCORED = """
import json
params = yaml.safe_load(Path("params.yaml").read_text())
rate, seed = params["lr"], params["prepare"]["seed"]
scores = {"log_loss": 1 - rate, "validation_log_loss": rate, "validation_accuracy": 1 - rate}
if params["ensemble"]["method"] == "fitted_weights":
    scores = {"log_loss": 1 - rate}
for path, content in {
    "metrics/ensemble.json": json.dumps(scores),
    "metrics/networks/resnet18.json": '{"kept_epoch": 1}',
    "metrics/networks/resnet34.json": "{}",
    "models/networks/resnet18.safetensors": str(rate > 0.001),
    "models/networks/resnet34.safetensors": str(rate > 0.001),
    "data/prepared/split.csv": f"photo,label,split,sha256\\na.jpg,cat,validation,{seed}\\nb.jpg,cat,train,{seed}1\\n",
}.items():
    if path.startswith((*stage["outs"], *(name for metric in stage.get("metrics", []) for name in metric))):
        Path(path).write_text(content)
"""


def run_tool(repository: Repository, name: str) -> str:
    done = repository.run(name)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_experiments_are_ranked_by_validation_scores_and_those_with_the_same_models_marked(
    repository: Repository,
) -> None:
    for name in ("prepare", "train", "evaluate", "ensemble"):
        add_to_stand_in(repository.root / f"stages/{name}.py", SCORED)
    repository.dvc("repro")
    repository.commit()
    for name, *changes in (
        ("faster", "lr=0.05", "+networks.resnet34.train={epochs: 4}"),
        ("fitted", "lr=0.0004", "ensemble.method=fitted_weights"),
        ("other-photos", "prepare.seed=2"),
    ):
        repository.dvc("exp", "run", "--temp", "--name", name, *(f"--set-param={change}" for change in changes))
    repository.dvc("exp", "run", "--queue", "--name", "later", "-S", "lr=0.07")
    assert run_tool(repository, "experiments.py").splitlines() == [
        "Ranked by the ensemble's log loss on 1 validation photos:",
        "   experiment  log loss  accuracy  kept epoch       params that differ from HEAD",
        "1  HEAD        0.0010    0.9990    resnet18 1 of 1",
        "                                   resnet34 ? of 1",
        "2  faster      0.0500    0.9500    resnet18 1 of 1  lr 0.05, networks.resnet34.train.epochs 4",
        "                                   resnet34 ? of 4",
        "-  fitted      none      none      resnet18 1 of 1  lr 0.0004, ensemble.method fitted_weights, the",
        "                                   resnet34 ? of 1  same models as HEAD",
        "",
        "Ranked by the ensemble's log loss on 1 validation photos:",
        "   experiment    log loss  accuracy  kept epoch       params that differ from HEAD",
        "1  other-photos  0.0010    0.9990    resnet18 1 of 1  prepare.seed 2",
        "                                     resnet34 ? of 1",
        "",
        "Scores on different validation photos cannot be compared.",
        "Left out: later has no results; see `dvc queue status`",
        "Which differences are more than chance: python tools/compare.py HEAD EXPERIMENT",
    ]
