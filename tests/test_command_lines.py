"""The command lines of all scripts in stages/ and tools/."""

import os
from pathlib import Path

from run import copy_pipeline

import forked
import pytest
from projects import SCRIPTS, Project, error_line

# The arguments that each script requires.
ARGUMENTS = {"stages/train.py": ["resnet18"], "tools/networks.py": ["resnet18"], "tools/predict.py": ["a.jpg"]}


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_print_their_help_and_write_nothing(script: str, project: Project) -> None:
    name = Path(script).name
    done = project.run(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {name} [-h]")
    assert "show this help message and exit" in done.stdout
    assert list(project.root.iterdir()) == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_name_an_unknown_option_in_one_line(script: str, project: Project) -> None:
    name = Path(script).name
    done = project.run(name, *ARGUMENTS.get(script, []), "--no-such-option")
    assert error_line(done) == f"unrecognized arguments: --no-such-option; see {name} --help"
    assert done.stdout == ""
    assert list(project.root.iterdir()) == []


def test_scripts_name_a_missing_argument_in_one_line(project: Project) -> None:
    for script, argument in (("train.py", "NETWORK"), ("networks.py", "NETWORK"), ("predict.py", "PHOTO")):
        line = error_line(project.run(script))
        assert line == f"the following arguments are required: {argument}; see {script} --help"


def test_serve_names_a_package_that_is_not_installed(tmp_path: Path) -> None:
    copy_pipeline(tmp_path)
    (tmp_path / "tools/flask.py").write_text("raise ModuleNotFoundError(name='flask')")  # found before the real one
    done = forked.run(["tools/serve.py"], tmp_path, os.environ)
    assert error_line(done) == "flask is not installed; run `pip install -r requirements/serve.txt` or `make serve`"
