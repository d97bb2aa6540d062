"""The workflow in docs/pull-requests.md: its steps, run in a clone with a local remote. Only GitHub is a stand-in."""

import os
import shutil
import subprocess
from pathlib import Path

from tests.support import forked
from tests.support.projects import REPOSITORY, Repository, error_line

import pytest
import yaml

pytestmark = pytest.mark.slow

CONTEXT = {"${{ github.event.number }}": "7", "${{ github.token }}": "secret"}
GH = """#!/bin/sh
echo "$GH_TOKEN $*" > "$GITHUB_STAND_IN/arguments"
cp comment.md "$GITHUB_STAND_IN"
"""


def workflow() -> dict:
    """The job in the docs page."""
    page = (REPOSITORY / "docs/pull-requests.md").read_text(encoding="utf-8")
    [job] = yaml.safe_load(page.split("```yaml\n")[1].split("```")[0])["jobs"].values()
    return job


@pytest.fixture
def origin(repository: Repository, tmp_path: Path) -> Repository:
    """A repository whose results are in a remote, with a branch `votes` that combines the networks differently."""
    shutil.copy(REPOSITORY / "Makefile", repository.root)
    repository.git("branch", "--move", "main")
    repository.dvc("add", "data/raw/train.zip")
    repository.dvc("remote", "add", "--default", "storage", str(tmp_path / "remote"))
    repository.commit()
    repository.dvc("push")
    repository.git("checkout", "--quiet", "-b", "votes")
    repository.params["ensemble"]["method"] = "majority_vote"
    repository.write_params()
    repository.commit()
    return repository


def run_steps(job: dict, clone: Repository, folder: Path) -> None:
    """Run the job's commands as GitHub does, with its variables."""
    shutil.rmtree(clone.root / ".venv", ignore_errors=True)
    (clone.root / ".venv/bin").mkdir(parents=True)
    (clone.root / ".venv/installed").touch()  # what `make install` would create
    (folder / "gh").write_text(GH)
    (folder / "gh").chmod(0o755)
    environment = forked.on_path(clone.environment) | {
        "GITHUB_BASE_REF": "main",
        "GITHUB_REPOSITORY": "owner/name",
        "GITHUB_PATH": str(folder / "path"),
        "GITHUB_STAND_IN": str(folder),
    }
    for step in job["steps"]:
        if "run" in step:
            path = "".join(f"{line}{os.pathsep}" for line in lines_of(folder / "path"))
            values = {name: CONTEXT[value] for name, value in (job["env"] | step.get("env", {})).items()}
            env = environment | values | {"PATH": f"{path}{folder}{os.pathsep}{environment['PATH']}"}
            done = subprocess.run(
                ["bash", "-e", "-c", step["run"]], cwd=clone.root, env=env, capture_output=True, text=True
            )
            assert done.returncode == 0, f"{step['run']}\n{done.stdout}{done.stderr}"
            print(done.stdout)


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def test_the_workflow_comments_with_what_a_pull_request_changes(origin: Repository, tmp_path: Path) -> None:
    origin.git("clone", "--quiet", ".", str(tmp_path / "clone"))
    clone, folder = Repository(tmp_path / "clone"), tmp_path / "github"
    folder.mkdir()
    run_steps(workflow(), clone, folder)

    assert (folder / "arguments").read_text() == (
        "secret pr comment 7 --body-file comment.md --edit-last --create-if-none\n"
    )
    comment = (folder / "comment.md").read_text(encoding="utf-8")
    assert "`workspace` compared with `origin/main`" in comment
    assert "ensemble.method majority_vote instead of mean_logits" in comment
    assert "| resnet18 | `workspace` | **The same model.** |" in comment
    plots = origin.git("rev-parse", "refs/compare/7").strip()
    for name in ("accuracy.png", "log_loss.png"):
        assert f"](https://github.com/owner/name/raw/{plots}/{name})" in comment
        blob = ["git", "cat-file", "blob", f"{plots}:{name}"]
        pushed = subprocess.run(blob, cwd=origin.root, capture_output=True, check=True).stdout
        assert pushed == (clone.root / "metrics/compare" / name).read_bytes()
    assert origin.git("branch", "--format=%(refname:short)").split() == ["main", "votes"]

    origin.git("clone", "--quiet", "--depth=1", origin.root.as_uri(), str(tmp_path / "shallow"))
    shallow = Repository(tmp_path / "shallow")
    done = forked.run(["tools/compare.py", "origin/main"], shallow.root, forked.on_path(shallow.environment))
    assert error_line(done) == (
        "unknown Git revision 'origin/main': this clone is shallow, so it may lack the commit; run "
        "`git fetch --unshallow origin '+refs/heads/*:refs/remotes/origin/*'` (in a workflow, set "
        "fetch-depth: 0 for the checkout)"
    )
    done = forked.run(["tools/experiments.py"], shallow.root, forked.on_path(shallow.environment))
    assert "Experiments of other commits are left out, because this clone is shallow; run `git fetch" in done.stdout
