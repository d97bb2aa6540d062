"""The pipeline as its users run it: `dvc` in a repository of its own."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY, SCRIPTS, STAGE_NAMES, STAGES, Project, Repository, error_line


def test_a_second_repro_has_nothing_to_do(finished: Repository) -> None:
    assert "Data and pipelines are up to date" in finished.dvc("repro")


def test_git_holds_the_metrics_and_no_photos_predictions_or_models(finished: Repository) -> None:
    tracked = set(finished.git("ls-files").splitlines())
    assert {f"metrics/{name}.json" for name in STAGE_NAMES if name != "report"} <= tracked
    assert not any(
        path.endswith((".safetensors", "predictions.csv", "split.csv", ".png", ".html", ".zip")) for path in tracked
    )
    assert finished.git("status", "--porcelain") == ""


def test_status_is_clean_after_repro_and_what_is_there_can_be_committed_and_saved(repository: Repository) -> None:
    assert repository.try_dvc("status", "--quiet").returncode == 0
    repository.dvc("commit", "--force")
    repository.dvc("exp", "save", "--name", "saved")
    assert repository.git("status", "--porcelain") == ""
    assert repository.try_dvc("status", "--quiet").returncode == 0


def test_a_clone_with_windows_line_endings_has_the_same_bytes(finished: Repository, tmp_path: Path) -> None:
    finished.git("clone", "--quiet", "--config", "core.autocrlf=true", ".", str(tmp_path / "clone"))
    for name in finished.git("ls-files").splitlines():
        assert (tmp_path / "clone" / name).read_bytes() == (finished.root / name).read_bytes(), name


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment, in which nothing is installed; its bin/."""
    folder = tmp_path_factory.mktemp("an environment of its own")
    venv.create(folder, symlinks=True)
    return folder / "bin"


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_dvc_of_another_environment_runs_the_stages_with_the_python_on_path(
    repository: Repository, bare: Path, shell: str
) -> None:
    """As pipx and brew install DVC. Here it has all packages, less those that only the stages need."""
    hide = "import sys; sys.modules.update(dict.fromkeys(('numpy', 'pandas', 'torch')))"
    code = f"{hide}; sys.path.append({sysconfig.get_path('purelib')!r}); from dvc.cli import main; sys.exit(main())"
    command = [bare / "python", "-c", code, "repro", "--force", "--single-item", "prepare"]
    environment = repository.environment | {"SHELL": shell}
    done = subprocess.run(command, cwd=repository.root, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "48 photos: 24 train, 12 validation, 12 test; " in done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_python_without_the_packages_is_named_in_one_line(project: Project, bare: Path, script: str) -> None:
    environment = os.environ | {"PYTHONSAFEPATH": "1"}  # leaves the script's folder out of where Python looks
    command = [bare / "python", REPOSITORY / script]
    done = subprocess.run(command, cwd=project.root, env=environment, capture_output=True, text=True, timeout=120)
    named = re.escape(f"{bare}/python has no package ") + r"\w+; activate the project's environment \(source \.venv"
    assert re.match(named, error_line(done))


def test_an_older_python_is_refused_in_one_line() -> None:
    code = f"import sys; sys.version_info = (3, 10, 1); sys.path.insert(0, {str(STAGES)!r}); import catsdogs"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "expected 3.11 or newer; activate the project's environment" in error_line(done)


def test_another_learning_rate_retrains_and_can_be_compared(repository: Repository) -> None:
    stages = repository.stages_run_by("exp", "run", "--name", "slower", "-S", "lr=0.0005")
    assert stages == ["train_resnet18", "train_resnet34", "evaluate", "ensemble", "report"]

    assert json.loads(repository.dvc("params", "diff", "--json")) == {
        "params.yaml": {"lr": {"old": 0.001, "new": 0.0005, "diff": -0.0005}}
    }
    changed = json.loads(repository.dvc("metrics", "diff", "--json"))
    assert "validation_loss" in changed["metrics/train_resnet18.json"]
    assert "log_loss" in changed["metrics/ensemble.json"]
    shown = json.loads(repository.dvc("metrics", "show", "--json"))[""]["data"]
    assert shown["metrics/ensemble.json"]["data"] == repository.read_json("metrics/ensemble.json")
    assert "slower" in repository.dvc("exp", "show", "--csv")


def test_another_method_runs_the_ensemble_and_no_network(repository: Repository) -> None:
    assert repository.stages_run_by("exp", "run", "-S", "ensemble.method=majority_vote") == ["ensemble", "report"]
    assert repository.read_json("metrics/ensemble.json")["method"] == "majority_vote"


def test_plots_show_curves_confusion_matrices_and_the_contact_sheet(finished: Repository) -> None:
    plots = json.loads(finished.dvc("plots", "show", "--json"))["data"]
    drawn = [f"metrics/{kind}/{name}.csv" for kind in ("curves", "confusion") for name in ("resnet18", "resnet34")]
    drawn.append("metrics/confusion_ensemble.csv")
    named = ("ensemble", "resnet18", "resnet34")
    drawn += [f"metrics/{kind}/{name}.csv" for kind in ("roc", "reliability") for name in named]
    assert set(plots) == {*drawn, "data/prepared/contact_sheet.png", "metrics/plots/confusion.png"}
    for name in drawn:
        chart = plots[name][0]["content"]
        assert chart["title"]["text"] == name  # says which network it shows
    curves = plots["metrics/curves/resnet18.csv"][0]["content"]["data"]["values"]
    assert {row["field"] for row in curves} == {"train_loss", "validation_loss"}


def test_one_network_alone_and_then_another_beside_it(repository: Repository) -> None:
    earlier = {name: (repository.root / name).read_bytes() for name in ("dvc.yaml", "params.yaml", "dvc.lock")}
    assert repository.run("networks.py", "resnet18").returncode == 0
    assert repository.stages_run_by("exp", "run") == ["evaluate", "ensemble", "report"]
    assert list(repository.read_json("metrics/evaluate.json")) == ["resnet18"]
    assert repository.read_json("metrics/ensemble.json")["members"] == "resnet18"
    assert repository.try_dvc("status", "--quiet").returncode == 0

    assert repository.run("networks.py", "resnet18", "mobilenet_v2").returncode == 0
    repository.params = yaml.safe_load((repository.root / "params.yaml").read_text())
    assert repository.params["networks"].pop("mobilenet_v2") == {"weights": "IMAGENET1K_V1"}
    repository.params["networks"]["mobilenet_v2"] = {"weights": "none"}
    repository.write_params()
    assert repository.stages_run_by("repro") == ["train_mobilenet_v2", "evaluate", "ensemble", "report"]
    assert list(repository.read_json("metrics/evaluate.json")) == ["resnet18", "mobilenet_v2"]
    page = (repository.root / "metrics/report.html").read_text(encoding="utf-8")
    assert "Together, resnet18 and mobilenet_v2 name" in page
    assert "<h3>train_mobilenet_v2</h3>" in page

    assert repository.run("networks.py", "resnet18", "resnet34").returncode == 0
    assert (repository.root / "dvc.yaml").read_bytes() == earlier["dvc.yaml"]
    repository.git("restore", ".")
    repository.dvc("checkout")
    assert {name: (repository.root / name).read_bytes() for name in earlier} == earlier
    assert repository.try_dvc("status", "--quiet").returncode == 0


def test_a_damaged_score_is_restored_without_training(repository: Repository) -> None:
    path = repository.root / "metrics/ensemble.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:50])
    assert error_line(repository.run("predict.py", "a.jpg")).endswith("; run `dvc repro` to restore it")
    assert "train_" not in "".join(repository.stages_run_by("repro"))
    assert path.read_bytes() == whole


def test_a_wrong_param_stops_repro_with_one_line(repository: Repository) -> None:
    repository.params["ensemble"]["method"] = "mean"
    repository.write_params()
    done = repository.try_dvc("repro")
    assert done.returncode != 0
    assert "error: params.yaml: ensemble.method is 'mean'; expected one of mean_logits" in done.stderr
    assert "Traceback" not in done.stderr
