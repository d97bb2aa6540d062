"""The pipeline as its users run it: `dvc` in a repository of its own."""

import json
import os
import re
from pathlib import Path

import yaml
from conftest import REPOSITORY, STAGE_NAMES, Repository


def test_a_second_repro_has_nothing_to_do(finished: Repository) -> None:
    assert "Data and pipelines are up to date" in finished.dvc("repro")


def test_git_holds_the_metrics_and_no_photos_predictions_or_models(finished: Repository) -> None:
    tracked = set(finished.git("ls-files").splitlines())
    assert {f"metrics/{name}.json" for name in STAGE_NAMES if name != "report"} <= tracked
    assert not any(
        path.endswith((".safetensors", "predictions.csv", "split.csv", ".png", ".html", ".zip")) for path in tracked
    )
    assert finished.git("status", "--porcelain") == ""


def test_a_stage_runs_with_the_python_that_runs_dvc_whatever_path_holds(repository: Repository, tmp_path: Path) -> None:
    """As with `.venv/bin/dvc repro` and no activated environment."""
    wrong = tmp_path / "bin"
    wrong.mkdir()
    for name in ("python", "python3"):
        (wrong / name).write_text("#!/bin/sh\necho the wrong python >&2\nexit 1\n")
        (wrong / name).chmod(0o755)
    for shell in ("/bin/sh", "/bin/bash"):
        path = f"{wrong}{os.pathsep}{os.environ['PATH']}"
        output = repository.dvc("repro", "--force", "--single-item", "prepare", env={"PATH": path, "SHELL": shell})
        assert "48 photos: 24 train, 12 validation, 12 test; " in output


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


def test_a_third_network_joins_by_what_the_readme_says(repository: Repository) -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)
    [line] = [line for line in blocks[0].splitlines() if "mobilenet_v2" in line]
    [stage] = [block for block in blocks if "train_mobilenet_v2:" in block]

    repository.params["networks"] |= yaml.safe_load(line.replace("IMAGENET1K_V1", "none"))
    repository.write_params()
    pipeline = repository.root / "dvc.yaml"
    pipeline.write_text(pipeline.read_text().replace("\n  evaluate:\n", f"\n{stage}\n  evaluate:\n"))

    assert repository.stages_run_by("repro") == ["train_mobilenet_v2", "evaluate", "ensemble", "report"]
    assert list(repository.read_json("metrics/evaluate.json")) == ["resnet18", "resnet34", "mobilenet_v2"]
    assert repository.read_json("metrics/ensemble.json")["members"] == "resnet18, resnet34, mobilenet_v2"
    page = (repository.root / "metrics/report.html").read_text(encoding="utf-8")
    assert "Together, resnet18, resnet34 and mobilenet_v2 name" in page
    assert "<h3>train_mobilenet_v2</h3>" in page


def test_a_wrong_param_stops_repro_with_one_line(repository: Repository) -> None:
    repository.params["ensemble"]["method"] = "mean"
    repository.write_params()
    done = repository.try_dvc("repro")
    assert done.returncode != 0
    assert "error: params.yaml: ensemble.method is 'mean'; expected one of mean_logits" in done.stderr
    assert "Traceback" not in done.stderr
