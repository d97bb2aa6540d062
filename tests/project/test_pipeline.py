"""The pipeline as users run it: `dvc` in a repository of its own."""

import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from tests.support.projects import ARGUMENTS, REPOSITORY, SCRIPTS, Project, Repository, error_line

import pytest


@pytest.mark.slow
def test_dvc_repro_has_nothing_to_do_the_second_time(finished: Repository) -> None:
    assert "Data and pipelines are up to date" in finished.dvc("repro")


@pytest.mark.slow
def test_a_stage_refuses_code_that_was_edited_after_dvc_repro_began(repository: Repository) -> None:
    """Here it is edited before, but track_code is skipped."""
    script = repository.root / "stages/ensemble.py"
    repro = ("repro", "--force", "--single-item", "ensemble")
    before = script.read_text()
    script.write_text(f"{before}# a comment\n")
    repository.dvc(*repro)
    script.write_text(f"{before}CHANGED = 1\n")
    assert "error: stages/ensemble.py has changed since `dvc repro` began; run `dvc repro` again\n" in (
        repository.try_dvc(*repro).stderr
    )
    assert repository.stages_run_by("repro") == ["track_code", "ensemble"]
    assert repository.has_clean_status()


@pytest.mark.slow
def test_git_tracks_the_metrics_but_no_photos_predictions_or_models(finished: Repository) -> None:
    tracked = set(finished.git("ls-files").splitlines())
    names = ("ensemble", "networks/resnet18", "networks/resnet34")
    assert {path for path in tracked if path.startswith("metrics/")} == {f"metrics/{name}.json" for name in names}
    assert not any(
        path.endswith((".safetensors", "networks.csv", "ensemble.csv", "split.csv", ".png", ".html", ".zip"))
        for path in tracked
    )
    assert finished.git("status", "--porcelain") == ""


@pytest.mark.slow
def test_dvc_commits_and_saves_the_results_and_its_status_stays_clean(repository: Repository) -> None:
    assert repository.has_clean_status()
    repository.dvc("commit", "--force")
    repository.dvc("exp", "save", "--name", "saved")
    assert repository.git("status", "--porcelain") == ""
    assert repository.has_clean_status()


@pytest.mark.slow
def test_git_clone_with_windows_line_endings_has_the_same_bytes(finished: Repository, tmp_path: Path) -> None:
    finished.git("clone", "--quiet", "--config", "core.autocrlf=true", ".", str(tmp_path / "clone"))
    for name in finished.git("ls-files").splitlines():
        assert (tmp_path / "clone" / name).read_bytes() == (finished.root / name).read_bytes(), name


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin/ of a new environment in which nothing is installed."""
    folder = tmp_path_factory.mktemp("another environment")
    venv.create(folder, symlinks=True)
    return folder / "bin"


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_dvc_in_another_environment_runs_stages_with_the_python_on_path(
    repository: Repository, bare: Path, shell: str
) -> None:
    """As pipx and brew install DVC: here without some packages that only the stages need."""
    hide = "import sys; sys.modules.update(dict.fromkeys(('numpy', 'pandas', 'torch')))"
    code = f"{hide}; sys.path.append({sysconfig.get_path('purelib')!r}); from dvc.cli import main; sys.exit(main())"
    command = [bare / "python", "-c", code, "repro", "--force", "--single-item", "prepare"]
    environment = repository.environment | {"SHELL": shell}
    done = subprocess.run(command, cwd=repository.root, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "48 photos: 24 train, 12 validation, 12 test (24 cat, 24 dog); " in done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_name_a_python_without_the_packages_in_one_line(project: Project, bare: Path, script: str) -> None:
    environment = os.environ | {"PYTHONSAFEPATH": "1"}  # Python does not look for modules in the script's folder
    command = [bare / "python", REPOSITORY / script, *ARGUMENTS.get(script, [])]
    done = subprocess.run(command, cwd=project.root, env=environment, capture_output=True, text=True, timeout=120)
    named = re.escape(f" is not installed for {bare}/python; activate the project's environment: `source .venv/bin/")
    assert re.match(rf"package \w+{named}", error_line(done))


def test_pipeline_refuses_an_older_python_in_one_line() -> None:
    code = f"import sys; sys.version_info = (3, 10, 1); sys.path.insert(0, {str(REPOSITORY)!r}); import pipeline.core"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "expected 3.11 or newer; activate the project's environment" in error_line(done)


@pytest.mark.slow
def test_dvc_exp_run_with_another_method_runs_no_network_and_can_be_compared(repository: Repository) -> None:
    command = ("exp", "run", "--name", "votes", "-S", "ensemble.method=majority_vote")
    assert repository.stages_run_by(*command) == ["ensemble", "report"]
    assert repository.read_json("models/combination.json")["method"] == "majority_vote"
    page = (repository.root / "metrics/report.html").read_text(encoding="utf-8")
    assert "The confidence of a majority vote is the share of votes" in page

    assert json.loads(repository.dvc("params", "diff", "--json")) == {
        "params.yaml": {"ensemble.method": {"old": "mean_logits", "new": "majority_vote"}}
    }
    changed = json.loads(repository.dvc("metrics", "diff", "--json"))
    assert set(changed) == {"metrics/ensemble.json"}
    assert "log_loss" in changed["metrics/ensemble.json"]
    shown = json.loads(repository.dvc("metrics", "show", "--json"))[""]["data"]
    names = ("metrics/ensemble.json", "metrics/networks/resnet18.json", "metrics/networks/resnet34.json")
    assert {name: of["data"] for name, of in shown.items()} == {name: repository.read_json(name) for name in names}
    # Every score of every network, readable in a terminal.
    lines = repository.dvc("metrics", "show").splitlines()
    assert len(lines) == 4
    assert max(map(len, lines)) <= 120
    page = (REPOSITORY / "docs/experiments.md").read_text(encoding="utf-8")
    command = re.search(r"^dvc (exp show .*--sort-by \w+)$", page, re.MULTILINE)
    repository.environment |= {"COLUMNS": "120"}
    lines = [line.strip() for line in repository.dvc(*shlex.split(command[1])).splitlines()]
    assert lines[1].split() == ["Experiment", "validation_log_loss", "ensemble.method"]
    assert re.fullmatch(r"└── \w{7} \[votes\] .* [\d.]+ +majority_vote", lines[-2])
    plots = json.loads(repository.dvc("plots", "diff", "--json"))["data"]
    rows = plots["metrics/reliability/ensemble.csv"][0]["content"]["data"]["values"]
    assert {row["rev"] for row in rows} == {"HEAD", "workspace"}


@pytest.mark.slow
def test_dvc_plots_shows_curves_confusion_matrices_and_the_contact_sheet(finished: Repository) -> None:
    plots = json.loads(finished.dvc("plots", "show", "--json"))["data"]
    drawn = [f"metrics/{kind}/{name}.csv" for kind in ("curves", "steps") for name in ("resnet18", "resnet34")]
    named = ("ensemble", "resnet18", "resnet34")
    drawn += [f"metrics/{kind}/{name}.csv" for kind in ("confusion", "roc", "reliability") for name in named]
    kinds = ("accuracy", "confusion", "learning_curves", "reliability", "roc")
    images = {f"metrics/plots/{kind}.png" for kind in kinds}  # which the page shows offline, too
    by_network = {"validation accuracy by epoch": "validation_accuracy", "learning rate by step": "lr"}
    assert set(plots) == {*drawn, *images, *by_network, "data/prepared/contact_sheet.png"}
    for name in drawn:
        plot = plots[name][0]["content"]
        assert plot["title"]["text"] == name  # names the network
    curves = plots["metrics/curves/resnet18.csv"][0]["content"]["data"]["values"]
    assert {row["field"] for row in curves} == {"train_loss", "validation_loss"}
    for name, column in by_network.items():
        rows = plots[name][0]["content"]["data"]["values"]
        assert {Path(row["filename"]).stem for row in rows} == {"resnet18", "resnet34"}
        assert all(column in row for row in rows)


@pytest.mark.slow
def test_dvc_repro_restores_a_damaged_score_without_training(repository: Repository) -> None:
    path = repository.root / "models/combination.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:50])
    assert error_line(repository.run("predict.py", "a.jpg")).endswith("; run `dvc repro` to restore it")
    assert "train_" not in "".join(repository.stages_run_by("repro"))
    assert path.read_bytes() == whole


@pytest.mark.slow
def test_dvc_repro_stops_at_a_wrong_param_with_one_line(repository: Repository) -> None:
    repository.params["ensemble"]["method"] = "mean"
    repository.write_params()
    done = repository.try_dvc("repro")
    assert done.returncode != 0
    assert "error: params.yaml: ensemble.method is 'mean'; input should be 'mean_logits', " in done.stderr
    assert "Traceback" not in done.stderr
