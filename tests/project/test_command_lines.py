"""The command lines of all scripts in stages/ and tools/."""

import os
from pathlib import Path

from run import copy_pipeline
from tests.support import forked
from tests.support.projects import ARGUMENTS, SCRIPTS, Project, error_line

import pytest

# Packages that take from half a second to several seconds to import.
SLOW = ("torch", "torchvision", "pandas", "scipy", "sklearn", "dvc", "onnx", "cleanlab")
# What each stage that needs PyTorch says is missing in an empty project whose weights for resnet18 are a file.
MISSING = {
    "train.py": "data/prepared/train.safetensors does not exist; run `dvc repro`",
    "evaluate.py": "models/networks/resnet18.safetensors does not exist; run `dvc repro`",
    "reject.py": "networks.resnet18.weights: resnet18-0123abcd.pth does not exist; check the path",
}


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment variables with which importing a slow package fails."""
    folder = tmp_path_factory.mktemp("slow_packages")
    for package in SLOW:
        (folder / f"{package}.py").write_text(f"raise AssertionError('{package} is imported')")
    return {"PYTHONPATH": str(folder)}


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_print_their_help_at_once_and_write_nothing(
    script: str, project: Project, quick: dict[str, str]
) -> None:
    name = Path(script).name
    done = project.run(name, "--help", env=quick)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {name} [-h]")
    assert "show this help message and exit" in done.stdout
    assert list(project.root.iterdir()) == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_name_an_unknown_option_at_once_in_one_line(
    script: str, project: Project, quick: dict[str, str]
) -> None:
    name = Path(script).name
    done = project.run(name, *ARGUMENTS.get(script, []), "--no-such-option", env=quick)
    assert error_line(done) == f"unrecognized arguments: --no-such-option; see {name} --help"
    assert done.stdout == ""
    assert list(project.root.iterdir()) == []


@pytest.mark.parametrize("name", MISSING)
def test_stages_name_wrong_params_and_missing_files_at_once(name: str, project: Project, quick: dict[str, str]) -> None:
    arguments = ARGUMENTS.get(f"stages/{name}", [])
    project.params["reject"]["false_rejection_rate"] = 0.01
    project.params["networks"]["resnet18"]["weights"] = "resnet18-0123abcd.pth"
    project.write_params()
    assert error_line(project.run(name, *arguments, env=quick)).startswith(MISSING[name])
    project.params["lr"] = "fast"
    project.write_params()
    assert error_line(project.run(name, *arguments, env=quick)).startswith("params.yaml: lr is 'fast'; ")


def test_scripts_name_a_missing_argument_in_one_line(project: Project) -> None:
    for script, argument in (("train.py", "NETWORK"), ("networks.py", "NETWORK or --list"), ("predict.py", "PHOTO")):
        line = error_line(project.run(script))
        assert line == f"the following arguments are required: {argument}; see {script} --help"


def test_serve_names_a_package_that_is_not_installed(tmp_path: Path) -> None:
    copy_pipeline(tmp_path)
    project = Project(tmp_path)
    project.write_params()
    for name in (
        "models/combination.json",
        *(f"models/networks/{name}.safetensors" for name in project.params["networks"]),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "tools/fastapi.py").write_text("raise ModuleNotFoundError(name='fastapi')")  # found before the real one
    done = forked.run(["tools/serve.py"], tmp_path, os.environ)
    assert error_line(done) == "fastapi is not installed; run `pip install -r requirements/serve.txt` or `make serve`"


def test_only_timms_networks_need_timm(tmp_path: Path) -> None:
    copy_pipeline(tmp_path)
    Project(tmp_path).write_params()
    (tmp_path / "tools/timm.py").write_text("raise ModuleNotFoundError(name='timm')")
    done = forked.run(["tools/networks.py", "resnet18", "timm/resnet18"], tmp_path, os.environ)
    assert error_line(done) == "timm is not installed; run `pip install -r requirements/timm.txt` or `make timm`"
    assert forked.run(["tools/networks.py", "resnet18"], tmp_path, os.environ).returncode == 0
