"""Searching for params: trials as DVC experiments of stand-ins whose losses are known."""

import math
import os
import re
import signal
import subprocess
import sys

from pipeline.core.tool_paths import SEARCH
from tests.support.projects import REPOSITORY, Project, Repository, add_to_stand_in, error_line
from tests.support.waiting import wait_for

import pytest
import yaml

# Added to the stand-in of train: its loss depends on lr, it fails with a high one, and it waits if a file says so.
SCORED = """
import json, os
lr = yaml.safe_load(Path("params.yaml").read_text())["lr"]
if lr > 0.0025:
    sys.exit("error: out of memory")
scores = json.dumps({"validation_calibrated_loss": abs(lr - 0.0012)})
Path(f"metrics/train/{sys.argv[1]}.json").write_text(scores)
if os.environ.get("WAIT"):
    print("waiting", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def repository(stand_ins: Repository) -> Repository:
    """The base has lr 0.001; search.yaml, which is not committed, varies only lr."""
    pytest.importorskip("optuna", reason="needs Optuna: pip install -r requirements/search.txt")
    (stand_ins.root / "search.yaml").write_text("lr: [0.001, 0.002]\n")
    add_to_stand_in(stand_ins.root / "stages/train.py", SCORED)
    stand_ins.dvc("repro")
    stand_ins.commit()
    (stand_ins.root / "search.yaml").write_text("lr: {low: 0.0001, high: 0.01, log: true}\n")
    return stand_ins


@pytest.mark.slow
def test_search_runs_trials_as_experiments_and_names_the_best_to_apply(repository: Repository) -> None:
    before = repository.results()
    done = repository.run("search.py", "--trials", "2")
    assert done.returncode == 0, done.stderr
    assert re.sub(r", \d+ s\n", "\n", done.stdout) == (
        "search-0: the current params -> 0.0002\n"
        "search-1: lr 0.00125 -> 0.0001\n"
        "search-2: lr 0.00269 -> failed: out of memory\n"
        "\n"
        "   trial     lr       calibrated validation loss\n"
        "1  search-1  0.00125  0.0001\n"
        "2  search-0  0.001    0.0002, the current params\n"
        "-  search-2  0.00269  failed: out of memory\n"
        "\n"
        ".search/search.png: the losses, and how they depend on each param\n"
        "search-1 has a lower calibrated validation loss (0.0001) than the current params (search-0: 0.0002).\n"
        "To apply it and evaluate it, without training: dvc exp apply search-1 && dvc repro\n"
    )
    assert repository.results() == before
    assert repository.git("status", "--porcelain") == " M search.yaml\n"
    assert (repository.root / ".search/search.png").stat().st_size > 10_000

    done = repository.run("search.py", "--trials", "3")  # resumes
    assert re.match(r"search-3: lr [\d.e-]+ -> ", done.stdout)

    repository.dvc("exp", "apply", "search-1")
    assert yaml.safe_load((repository.root / "params.yaml").read_text())["lr"] == 0.00125
    assert error_line(repository.run("search.py")).startswith("dvc.lock, params.yaml: not committed; commit or restore")
    assert repository.stages_run_by("repro") == ["evaluate", "ensemble", "report"]
    repository.commit()
    assert re.fullmatch(
        r"the search in \.search/ started from commit \w{7}; check that out, or delete \.search/ to begin another "
        r"search \(finished trials stay as experiments\)",
        error_line(repository.run("search.py")),
    )


@pytest.mark.slow
def test_search_refuses_a_shallow_clone_in_which_dvc_keeps_no_trials(repository: Repository) -> None:
    (repository.root / ".git/shallow").write_text(repository.git("rev-parse", "HEAD"))
    assert error_line(repository.run("search.py")) == (
        "this is a shallow clone, in which DVC keeps no trials; run `git fetch --unshallow` first"
    )


@pytest.mark.slow
def test_an_interrupted_search_leaves_nothing_behind_and_resumes(repository: Repository) -> None:
    """In new processes, because Ctrl-C reaches all of them at once."""
    script = repository.root / "stages/train.py"
    script.write_text(script.read_text().replace("abs(lr - 0.0012)", "2 * abs(lr - 0.0012)", 1))
    repository.dvc("repro", "track_code")
    repository.commit()
    command = [sys.executable, "tools/search.py", "--trials", "1"]
    options = {"cwd": repository.root, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=os.environ | {"WAIT": "1"}, **options) as process:
        log = repository.root / SEARCH / "search-0.log"
        wait_for(lambda: log.exists() and "waiting" in log.read_text(), seconds=60)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "")
    assert output.endswith("Interrupted; the same command resumes the search.\n")
    assert repository.git("status", "--porcelain") == ""
    assert repository.git("for-each-ref", "refs/exps") == ""
    done = repository.run("search.py", "--trials", "1")
    assert done.stdout.startswith("search-1: the current params -> 0.0004"), done.stderr


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ("", "search.yaml has no params; expected for example lr: {low: "),
        ("prepare.seed: [1, 2]", "search.yaml: prepare.seed cannot be searched; expected one of lr, train.layers, "),
        ("train.crop_scale: {low: 0.1, high: 1.5}", "search.yaml: train.crop_scale is 1.5; input should be less than "),
        ("train.layers: [head, al]", "search.yaml: train.layers is 'al'; input should be 'head', "),
        ("train.layers: [head]", "search.yaml: train.layers is ['head']; expected {low: "),
        ("train.layers: [batchnorm, all]", "search.yaml: train.layers lacks head, the value in params.yaml, "),
        ("lr: {low: 0.01, high: 0.001}", "search.yaml: lr is {'low': 0.01, 'high': 0.001}; expected low below high"),
        (
            "lr: {low: 0.002, high: 0.1}",
            "search.yaml: lr is from 0.002 to 0.1, without 0.001, the value in params.yaml",
        ),
        ("lr: {lo: 0.1, high: 0.2}", "search.yaml: lr is {'lo': 0.1, 'high': 0.2} (low is wrong); expected {low: "),
        (
            "lr: {low: 0, high: 0.2, log: true}",
            "search.yaml: lr is {'low': 0, 'high': 0.2, 'log': True}; expected low ",
        ),
        ("train.epochs: {low: 0.5, high: 3}", "search.yaml: train.epochs is {'low': 0.5, 'high': 3}; expected whole "),
        ("train.layers: {low: 1, high: 3}", "search.yaml: train.layers is a range, but head in params.yaml; expected "),
        (
            "train.backbone_lr_factor: {low: 0.1, high: 1.0}",
            "search.yaml: train.backbone_lr_factor has no effect with train.layers head; expected params that have an ",
        ),
        ("lr: {low: 0.0001, high: 0.01}", "data/prepared/train.safetensors does not exist; run `dvc repro` to create"),
    ],
)
def test_search_names_mistakes_in_search_yaml_before_the_first_trial(space: str, said: str, project: Project) -> None:
    (project.root / "search.yaml").write_text(space)
    project.params["lr"] = 0.001
    project.params["train"] |= {"layers": "head", "crop_scale": 0.5, "epochs": 1}
    project.write_params()
    assert error_line(project.run("search.py")).startswith(said)


def test_the_default_search_is_allowed_by_the_default_params() -> None:
    from pipeline.core.all_params import Params
    from pipeline.core.read_params import read_params
    from pipeline.search.space import read_space

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY)
        assert "lr" in read_space(read_params(Params))


def test_a_list_may_have_numbers_that_yaml_reads_as_text(project: Project) -> None:
    from pipeline.core.all_params import Params
    from pipeline.core.read_params import read_params
    from pipeline.search.space import read_space

    (project.root / "search.yaml").write_text("lr: [1e-3, 5e-4]\ntrain.layers: [head, all]\n")
    project.params["lr"] = 0.001
    project.params["train"]["layers"] = "all"
    project.write_params()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.root)
        assert read_space(read_params(Params)) == {"lr": [0.001, 0.0005], "train.layers": ["head", "all"]}


def test_search_varies_only_what_has_an_effect(project: Project) -> None:
    optuna = pytest.importorskip("optuna", reason="needs Optuna: pip install -r requirements/search.txt")
    from pipeline.core.all_params import Params
    from pipeline.core.read_params import read_params
    from pipeline.search.results import get_importances, table
    from pipeline.search.space import find_fixed, find_unused, read_space
    from pipeline.search.study import propose

    (project.root / "search.yaml").write_text("""
train.lr_gamma: {low: 0.1, high: 0.5}
train.backbone_lr_factor: {low: 0.1, high: 1.0, log: true}
train.layers: [head, last_half]
lr: {low: 0.0001, high: 0.01, log: true}
""")
    project.params["lr"] = 0.001
    project.params["train"] |= {"layers": "head", "lr_schedule": "step", "lr_step_size": None}
    project.write_params()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.root)
        params = read_params(Params)
        space = read_space(params)
    assert find_unused(space, params) == ["train.lr_gamma has no effect with train.lr_step_size null"]
    first, second = params.networks
    params.networks[first] = params.networks[first].model_copy(update={"lr": 0.1})
    assert find_fixed(space, params) == [f"lr does not vary for {first}, with a value of its own"]
    params.networks[second] = params.networks[second].model_copy(update={"lr": 0.2, "train": {"lr_step_size": 2}})
    assert find_unused(space, params) == ["lr has no effect if every network has its own"]
    trial = propose(optuna.create_study(), space, params)
    assert {"train.lr_gamma", "train.layers"} <= {*trial.params} <= {*space} - {"lr"}
    params.networks.update(read_params(Params, project.root / "params.yaml").networks)

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=1))
    study.set_user_attr("first_number", 0)
    for number in range(8):
        trial = propose(study, space, params)
        trial.set_user_attr("outcome", "0.1")
        study.tell(trial, 0.1 + number / 100)
    varied = {trial.params["train.layers"]: {*trial.params} - {"train.layers"} for trial in study.trials}
    assert varied == {"head": {"lr"}, "last_half": {"lr", "train.backbone_lr_factor"}}
    assert {*get_importances(study, study.trials)} == {"lr", "train.layers"}
    titles, *rows = table(study, study.trials)
    place = titles.index("train.backbone_lr_factor")
    assert all((" head " in row) == (row[place] == " ") for row in rows)


def test_a_trial_is_pruned_if_its_loss_is_above_the_median_in_the_second_half_of_the_epochs() -> None:
    optuna = pytest.importorskip("optuna", reason="needs Optuna: pip install -r requirements/search.txt")
    from pipeline.search.trials import EPOCH, is_hopeless

    def line(epoch: int, loss: float, network: str = "resnet34 epoch {}/4") -> tuple[str, ...]:
        text = (
            f"{network.format(epoch)}: train loss 0.1, validation loss 0.2 ({loss} calibrated), validation accuracy 1"
        )
        return EPOCH.match(text).groups()

    study, networks = optuna.create_study(), ["resnet18", "resnet34"]
    for loss in (0.1, 0.2, 0.3, 0.4):
        trial = study.ask()
        lines = [line(epoch, 0.01, "resnet18 epoch {}/6") for epoch in range(7)]  # this network has more epochs
        lines += [line(epoch, loss) for epoch in range(5)]
        assert not any(is_hopeless(study, trial, networks, *each) for each in lines)
        study.tell(trial, loss)
    verdicts = {
        (epoch, loss): is_hopeless(study, study.ask(), networks, *line(epoch, loss))
        for epoch, loss in ((1, 0.9), (2, 0.2), (2, 0.3), (3, math.nan), (4, 0.9))
    }
    assert [*verdicts.values()] == [False, False, True, True, False]
