"""tools/networks.py, which changes the set of networks: what then runs, and what the stages say of other networks."""

import shutil

from tests.support.projects import NEEDS_TIMM, REPOSITORY, Project, Repository, error_line

import pandas as pd
import pytest
import yaml


@pytest.mark.slow
def test_networks_takes_one_out_and_puts_another_in_and_dvc_runs_what_is_new(stand_ins: Repository) -> None:
    repository = stand_ins
    earlier = {name: (repository.root / name).read_bytes() for name in ("dvc.yaml", "params.yaml", "dvc.lock")}

    assert repository.run("networks.py", "resnet18").returncode == 0
    assert repository.stages_run_by("exp", "run") == ["reject", "evaluate", "ensemble", "report"]
    assert repository.has_clean_status()

    assert repository.run("networks.py", "resnet18", "mobilenet_v2").returncode == 0
    networks = yaml.safe_load((repository.root / "params.yaml").read_text())["networks"]
    assert networks == {"resnet18": {"weights": "none"}, "mobilenet_v2": {"weights": "IMAGENET1K_V1"}}
    plots = yaml.safe_load((repository.root / "dvc.yaml").read_text())["plots"]
    [rates] = (plot["learning rate by step"]["y"] for plot in plots if "learning rate by step" in plot)
    assert rates == {f"metrics/steps/{name}.csv": "lr" for name in networks}
    assert repository.stages_run_by("repro") == [
        "reject",
        "train_mobilenet_v2",
        "evaluate",
        "ensemble",
        "report",
    ]

    assert repository.run("networks.py", "resnet18", "resnet34").returncode == 0
    assert (repository.root / "dvc.yaml").read_bytes() == earlier["dvc.yaml"]
    repository.git("restore", ".")
    repository.dvc("checkout")
    assert {name: (repository.root / name).read_bytes() for name in earlier} == earlier
    assert repository.has_clean_status()


@pytest.mark.slow
def test_stages_score_a_single_network_and_then_another_one_with_it(repository: Repository) -> None:
    assert repository.run("networks.py", "resnet18").returncode == 0
    assert not (repository.root / "metrics/networks/resnet34.json").exists()
    repository.params = yaml.safe_load((repository.root / "params.yaml").read_text())
    for script in ("evaluate.py", "ensemble.py", "report.py"):
        repository.succeed(script)
    assert networks_scored(repository) == ["resnet18"]
    assert repository.read_json("models/combination.json")["members"] == ["resnet18"]
    assert "Together, " not in (repository.root / "metrics/report.html").read_text(encoding="utf-8")

    assert repository.run("networks.py", "resnet18", "mobilenet_v2").returncode == 0
    repository.params["networks"]["mobilenet_v2"] = {"weights": "none"}
    repository.succeed("train.py", "mobilenet_v2")
    for script in ("evaluate.py", "ensemble.py", "report.py"):
        repository.succeed(script)
    assert networks_scored(repository) == ["resnet18", "mobilenet_v2"]
    assert repository.read_json("models/combination.json")["members"] == ["resnet18", "mobilenet_v2"]
    page = (repository.root / "metrics/report.html").read_text(encoding="utf-8")
    assert "Together, resnet18 and mobilenet_v2 classified" in page
    assert "<h3>train_mobilenet_v2</h3>" in page


def test_networks_says_what_is_next_and_deletes_results_of_others(project: Project) -> None:
    project.write_params()
    shutil.copy(REPOSITORY / "dvc.yaml", project.root)
    scores = [project.root / f"metrics/networks/{name}.json" for name in ("resnet18", "vgg11")]
    scores[0].parent.mkdir(parents=True)
    for path in scores:
        path.touch()
    for networks, next_step in {
        "resnet18 resnet34": "nothing has changed",
        "resnet18": "run `dvc repro` to update the results; none has to be trained",
        "resnet18 vgg11 vgg13": "run `dvc repro` to train vgg11, vgg13 and update the results",
    }.items():
        output = project.run("networks.py", *networks.split()).stdout
        assert output == f"networks: {networks.replace(' ', ', ')}; {next_step}\n"
        assert [path.exists() for path in scores] == [True, False]


def networks_scored(repository: Repository) -> list[str]:
    """The networks in metrics/scores/networks.csv, which have a file in metrics/networks/, too."""
    names = pd.read_csv(repository.root / "metrics/scores/networks.csv")["network"].unique().tolist()
    assert {path.stem for path in (repository.root / "metrics/networks").iterdir()} == {*names}
    return names


@pytest.mark.parametrize(("lr", "has_own"), [(0.0025, True), (0.001, False)])
def test_networks_gives_a_new_network_what_the_recipe_in_use_has_for_it(
    lr: float, has_own: bool, project: Project
) -> None:
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(REPOSITORY / name, project.root)
    shutil.copytree(REPOSITORY / "recipes", project.root / "recipes")
    path = project.root / "params.yaml"
    path.write_text(
        path.read_text().replace("lr: 0.0025", f"lr: {lr}").replace("\nprepare:", "\n# My remark.\nprepare:")
    )
    project.run("networks.py", "resnet18")
    without = path.read_text()
    project.run("networks.py", "resnet18", "mobilenet_v2")
    text = path.read_text()
    assert "\n\n# My remark.\nprepare:" in text
    networks = yaml.safe_load(text)["networks"]
    assert networks["resnet18"] == {"weights": "IMAGENET1K_V1"}
    assert networks["mobilenet_v2"].get("train", {}).get("optimizer") == ("adam" if has_own else None)
    project.run("networks.py", "resnet18")
    assert path.read_text() == without


def test_networks_refuses_a_name_that_torchvision_does_not_know_and_changes_nothing(project: Project) -> None:
    project.write_params()
    before = (project.root / "params.yaml").read_bytes()
    assert error_line(project.run("networks.py", "resnet18", "resnet19")).startswith(
        "params.yaml: networks.resnet19: torchvision has no such network; expected a name such as "
    )
    assert (project.root / "params.yaml").read_bytes() == before


def test_networks_outside_a_project_says_where_to_run_it(project: Project) -> None:
    assert error_line(project.run("networks.py", "resnet18")) == (
        f"params.yaml does not exist in {project.root}; run this from the project's root"
    )


@pytest.mark.slow
@NEEDS_TIMM
def test_networks_sets_and_removes_timms(stand_ins: Repository) -> None:
    before = {name: (stand_ins.root / name).read_text() for name in ("dvc.yaml", "params.yaml")}
    assert stand_ins.run("networks.py", "resnet18", "timm/convnext_nano", "timm/vit_tiny_patch16_224").returncode == 0
    params = (stand_ins.root / "params.yaml").read_text()
    assert "  timm/vit_tiny_patch16_224: {weights: timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k}\n" in params
    pipeline = (stand_ins.root / "dvc.yaml").read_text()
    assert "  timm-convnext-nano: {path: models/networks/timm-convnext_nano.safetensors, type: model}\n" in pipeline
    assert stand_ins.stages_run_by("repro", "train_timm-convnext_nano") == ["train_timm-convnext_nano"]
    assert (stand_ins.root / "models/networks/timm-convnext_nano.safetensors").exists()
    assert stand_ins.run("networks.py", "timm/convnext_nano").returncode == 0  # new stages are copies of this one
    assert stand_ins.run("networks.py", "resnet18", "resnet34").returncode == 0
    assert not (stand_ins.root / "models/networks/timm-convnext_nano.safetensors").exists()
    assert (stand_ins.root / "dvc.yaml").read_text() == before["dvc.yaml"]


@pytest.mark.slow
@NEEDS_TIMM
def test_networks_lists_parameters_speed_and_accuracy(project: Project) -> None:
    output = project.succeed("networks.py", "--list", "squeezenet1_1", "timm/test_vit")
    lines = [line.split() for line in output.splitlines()[2:]]
    assert [line[0] for line in lines] == ["squeezenet1_1", "timm/test_vit"]
    assert [line[1:3] for line in lines] == [["0.7", "M"], ["0.3", "M"]]
    assert all(float(line[3].replace(",", "")) > 0 for line in lines)
    assert lines[0][4:] == ["IMAGENET1K_V1", "58.2"]
    assert lines[1][4:] == ["timm/test_vit.r160_in1k"]
    assert error_line(project.run("networks.py", "--list", "timm/nothing*")) == (
        "no network matches timm/nothing*; expected a name such as resnet18, or 'resnet*'"
    )
