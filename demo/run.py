"""Run the whole pipeline on synthetic photos: the same dvc.yaml and scripts, smaller numbers, no pretrained weights.

Usage: python demo/run.py FOLDER
FOLDER is recreated as a separate DVC project; nothing outside it is touched.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import yaml

PROJECT = Path(__file__).resolve().parent.parent
DEMO_PARAMS = PROJECT / "demo/params.yaml"
# Override user settings that would sign commits or run hooks.
GIT = [
    *("git", "-c", "user.name=demo", "-c", "user.email=demo@localhost"),
    *("-c", "commit.gpgsign=false", "-c", f"core.hooksPath={os.devnull}"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder to create, such as .demo")
    folder = parser.parse_args().folder
    make_project(folder)
    git(folder, "init", "--quiet")
    commit(folder, "Add the pipeline")
    python(folder, PROJECT / "demo/draw.py", "data/raw/train.zip")
    python(folder, "-m", "dvc", "repro")
    commit(folder, "Add the results")

    scores = pd.concat(
        pd.read_csv(folder / "metrics" / name) for name in ("scores/networks.csv", "scores/ensemble.csv")
    )
    columns = ["network", "accuracy", "correct", "total", "log_loss", "roc_auc"]
    table = scores.loc[scores["split"] == "test", columns]
    print(f"\n{table.to_string(index=False, formatters={'accuracy': '{:.6f}'.format})}\n")
    print("These scores are on synthetic photos and say nothing about accuracy on real ones.")
    print(f"All results on one page: {folder}/metrics/report.html")
    print(f"The photos as the networks saw them: {folder}/data/prepared/contact_sheet.png")
    print(f"To try an experiment: source .venv/bin/activate && cd {folder} && dvc exp run -S lr=0.002")


def make_project(folder: Path) -> None:
    """Copy the pipeline to `folder`, with the demo's params and an empty cache."""
    make_folder(folder, "demo")
    copy_pipeline(folder)
    params = merge(*(yaml.safe_load(path.read_text()) for path in (PROJECT / "params.yaml", DEMO_PARAMS)))
    params["networks"] = {name: {"weights": "none"} for name in params["networks"]}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    (folder / "data/raw").mkdir()


def merge(params: dict, changes: dict) -> dict:
    """Return `params` with the values in `changes`, section by section."""
    merged = dict(params)
    for key, value in changes.items():
        is_section = isinstance(value, dict) and isinstance(params.get(key), dict)
        merged[key] = merge(params[key], value) if is_section else value
    return merged


def make_folder(folder: Path, purpose: str) -> None:
    """Recreate `folder`; exit with an error if it is not empty and was not created for the same `purpose`."""
    mark = folder / f"made-by-{purpose}"  # a folder that contains this file may be deleted
    if folder.exists() and not mark.exists() and any(folder.iterdir()):
        sys.exit(f"error: {folder} was not created by the {purpose}; refusing to delete it; use another folder")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    mark.touch()


def copy_pipeline(folder: Path) -> None:
    """Copy the code and the settings of DVC and git to an existing folder: no params, photos, corrections or cache."""
    for part in ("stages", "pipeline", "tools", "recipes", "requirements"):
        shutil.copytree(PROJECT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    settings = (".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitattributes", ".gitignore")
    for name in ("dvc.yaml", "requirements.txt", *settings):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(PROJECT / name, folder / name)
    (folder / "data").mkdir()
    (folder / "data/corrections.txt").write_text("# no corrections\n")
    (folder / "data/labels.csv").write_text("photo,label\n")


def git(folder: Path, *arguments: str) -> None:
    run(folder, [*GIT, *arguments])


def commit(folder: Path, message: str) -> None:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", message)


def python(folder: Path, *arguments: str | Path) -> None:
    run(folder, [sys.executable, *map(str, arguments)])


def run(folder: Path, command: list[str]) -> None:
    if subprocess.run(command, cwd=folder, env=clean_environment()).returncode:
        sys.exit(f"error: `{' '.join(command)}` failed; see the error above")


def clean_environment() -> dict[str, str]:
    """The environment without GIT_* and DVC_*, which may point to another repository; `python` is this Python."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("GIT_", "DVC_"))}
    return environment | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


if __name__ == "__main__":
    main()
