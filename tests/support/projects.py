"""Scratch projects: a folder with params.yaml and photos, in which scripts run as users run them, also under DVC."""

import csv
import importlib.util
import json
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pipeline.core.parse_yaml import parse_yaml
from pipeline.editing.recipes import read_recipe, set_values
from run import GIT, clean_environment, copy_pipeline
from tests.support import forked
from tests.support.photos import Files, kaggle_files, write_folder, write_zip

import numpy as np
import pytest
import yaml
from safetensors import safe_open

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(
    f"{folder}/{path.name}" for folder in ("stages", "tools") for path in (REPOSITORY / folder).glob("*.py")
)
# The arguments that each script requires.
ARGUMENTS = {
    "stages/fold.py": ["resnet18", "1", "--folds", "5", "--seed", "1"],
    "stages/join_folds.py": ["--folds", "5", "--seed", "1"],
    "stages/train.py": ["resnet18"],
    "tools/label_studio.py": [__file__],  # any file that exists
    "tools/labels.py": ["export.json"],
    "tools/networks.py": ["resnet18"],
    "tools/predict.py": ["a.jpg"],
    "tools/recipe.py": ["best"],
    "tools/record.py": ["flowers"],
}
SPLITS = ("train", "validation", "test")
DVC_SETTINGS = ("DVC_NO_ANALYTICS", "DVC_SITE_CACHE_DIR")  # of conftest.py
# In dvc.yaml's order.
STAGE_NAMES = ("track_code", "prepare", "reject", "train_resnet18", "train_resnet34", "evaluate", "ensemble", "report")
NEEDS_TIMM = pytest.mark.skipif(
    importlib.util.find_spec("timm") is None, reason="needs timm: pip install -r requirements/timm.txt"
)


class Project:
    """A scratch project: a folder with a params.yaml, in which the repository's scripts are run as users run them.

    `params` starts as the repository's own params.yaml with its simplest recipe, shrunk: 32 pixels a side, 8/4/4
    photos, no pretrained weights, one epoch in batches of four.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.last_run: subprocess.CompletedProcess | None = None
        root.mkdir(parents=True, exist_ok=True)
        self.params: dict = parse_yaml((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
        self.recipe("ensemble-post")
        self.params["prepare"]["image_size"] = 32
        self.split(train=8, validation=4, test=4)
        for network in self.params["networks"].values():
            network["weights"] = "none"
        self.params["train"] |= {"epochs": 1, "batch_size": 4}

    def recipe(self, name: str) -> None:
        """Set the values of one of the repository's recipes."""
        set_values(self.params, read_recipe(name, REPOSITORY / "recipes"))

    def split(self, train: float, validation: float, test: float) -> None:
        """Set the number of photos in each split, or its share."""
        self.params["prepare"]["split"] = {"train": train, "validation": validation, "test": test}

    def photos(self, files: Files, source: str = "data/raw/train.zip") -> None:
        """Write `files` to `source` (a zip if the name ends in .zip, else a folder) and set prepare.source."""
        self.params["prepare"]["source"] = source
        write = write_zip if source.endswith(".zip") else write_folder
        write(self.root / source, files)

    def correct(self, *lines: str) -> None:
        """Write data/corrections.txt."""
        path = self.root / "data/corrections.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def write_params(self) -> None:
        """Write params.yaml and, if it is missing, an empty data/corrections.txt."""
        if not (self.root / "data/corrections.txt").exists():
            self.correct()
        if not (self.root / "data/labels.csv").exists():
            (self.root / "data/labels.csv").write_text("photo,label\n")
        (self.root / "params.yaml").write_text(yaml.safe_dump(self.params, sort_keys=False), encoding="utf-8")

    def run(
        self,
        script: str,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        stdin: str = "",
        largest_file: int = resource.RLIM_INFINITY,
    ) -> subprocess.CompletedProcess:
        """Run `python stages/<script> <arguments>` (or tools/<script>) in the project; its output comes as text.

        `env` is added to the environment, and then a new Python starts instead of a fork; `largest_file` is the number
        of bytes after which writing to a file fails, as on a full disk. Call `write_params` first.
        """
        path = str(REPOSITORY / next(name for name in SCRIPTS if name.endswith(f"/{script}")))
        if env:
            self.last_run = forked.run_new([path, *arguments], self.root, os.environ | env, timeout=300)
        else:
            self.last_run = forked.run([path, *arguments], self.root, os.environ, stdin, largest_file)
        return self.last_run

    def succeed(self, script: str, *arguments: str, env: Mapping[str, str] | None = None) -> str:
        """Write params.yaml and run a script, which must succeed; returns its stdout."""
        self.write_params()
        result = self.run(script, *arguments, env=env)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def prepare(self, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess:
        """Write params.yaml and run prepare, which must succeed."""
        self.succeed("prepare.py", env=env)
        return self.last_run

    def read_json(self, path: str) -> dict:
        return json.loads((self.root / path).read_text(encoding="utf-8"))

    def split_table(self) -> list[dict[str, str]]:
        """The rows of data/prepared/split.csv, every value as text."""
        with (self.root / "data/prepared/split.csv").open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def row_of(self, photo: str) -> dict[str, str]:
        """The row of split.csv that names `photo`."""
        [row] = [row for row in self.split_table() if row["photo"] == photo]
        return row

    def packed(self, split: str) -> tuple[np.ndarray, np.ndarray, dict]:
        """Pixels, labels and metadata of a packed split, read by the safetensors library."""
        with safe_open(self.root / f"data/prepared/{split}.safetensors", framework="numpy") as file:
            return file.get_tensor("pixels"), file.get_tensor("labels"), json.loads(file.metadata()["description"])

    def pixels_of(self) -> dict[str, np.ndarray]:
        """The packed pixels of every photo that is in a split, by the photo's name in split.csv."""
        table = self.split_table()
        return {
            row["photo"]: pixels
            for split in SPLITS
            for row, pixels in zip((row for row in table if row["split"] == split), self.packed(split)[0], strict=True)
        }

    def results(self) -> dict[str, bytes]:
        """Every file that the stages wrote, half-written ones included, with its bytes."""
        folders = [self.root / name for name in ("data/prepared", "models", "metrics")]
        files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
        return {path.relative_to(self.root).as_posix(): path.read_bytes() for path in files}

    def prepared_bytes(self) -> dict[str, bytes]:
        """Every file below data/prepared/ with its bytes."""
        return {path.name: path.read_bytes() for path in sorted((self.root / "data/prepared").iterdir())}


class Repository(Project):
    """A project with the pipeline in it, under git and DVC."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.environment = clean_environment() | {name: os.environ[name] for name in DVC_SETTINGS if name in os.environ}

    def git(self, *arguments: str) -> str:
        command = [*GIT, *arguments]
        done = subprocess.run(command, cwd=self.root, env=self.environment, capture_output=True, text=True, check=True)
        return done.stdout

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "a state")

    def try_dvc(self, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess:
        """Run `dvc`, and the stages that it runs, in forks; with `env` added to the environment, in new processes."""
        command = ["-m", "dvc", *arguments]
        if env:
            return forked.run_new(command, self.root, self.environment | env, timeout=300)
        return forked.run(command, self.root, forked.on_path(self.environment), timeout=300)

    def dvc(self, *arguments: str, env: Mapping[str, str] | None = None) -> str:
        """As `try_dvc`, which must succeed; returns its stdout."""
        done = self.try_dvc(*arguments, env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def stages_run_by(self, *arguments: str) -> list[str]:
        """The stages that a `dvc` command runs, in their order."""
        return re.findall(r"Running stage '([\w-]+)'", self.dvc(*arguments))

    def has_clean_status(self) -> bool:
        return self.try_dvc("status", "--quiet").returncode == 0


Kind = TypeVar("Kind", bound=Project)


def copy_of(project: Kind, folder: Path) -> Kind:
    """A copy of `project` below `folder`, free to be changed."""
    copy = type(project)(folder / "copy")
    shutil.copytree(project.root, copy.root, copy_function=_link_or_copy, dirs_exist_ok=True)
    copy.params = parse_yaml((copy.root / "params.yaml").read_text(encoding="utf-8"))
    return copy


def _link_or_copy(source: str, target: str) -> None:
    """Link models and the cache's content, which are large, if DVC protects them from being written to; else copy."""
    is_protected = not Path(source).stat().st_mode & 0o222
    is_large = "/models/networks/" in target or "/.dvc/cache/" in target
    (os.link if is_protected and is_large else shutil.copy2)(source, target)


STAND_IN = (REPOSITORY / "bench/stand_in.py").read_text()
END_OF_STAND_IN = "\nsys.exit()\n"


def stand_in_repository(root: Path) -> Repository:
    """A committed repository with the pipeline; its stages are stand-ins, except track_code; nothing has run yet."""
    repository = Repository(root)
    copy_pipeline(root)
    for script in {stage["cmd"].split()[1] for stage in parse_yaml((root / "dvc.yaml").read_text())["stages"].values()}:
        if script != "stages/track_code.py":
            # track_code still sees what the script imports.
            (root / script).write_text(f"{STAND_IN}{END_OF_STAND_IN}{(root / script).read_text()}")
    repository.git("init", "--quiet")
    repository.photos(kaggle_files(cats=1, dogs=1))
    repository.write_params()
    repository.commit()
    return repository


def add_to_stand_in(script: Path, code: str) -> None:
    """Make a stage of a `stand_in_repository` also run `code`."""
    stand_in, real = script.read_text().split(END_OF_STAND_IN)
    script.write_text(f"{stand_in}{code}{END_OF_STAND_IN}{real}")


def prepare_with_cores(folder: Path, cores: int) -> Path:
    """Write a script that runs prepare as on a machine with this many cores, and return its path.

    It notes each fork in a file `forks`.
    """
    script = folder / f"prepare_with_{cores}_cores.py"
    script.write_text(f"""
import os, runpy, sys
from pathlib import Path
sys.path.insert(0, {str(REPOSITORY)!r})
import pipeline.core.cores
pipeline.core.cores.usable_cores = lambda: {cores}
def noted(fork=os.fork):
    with open("forks", "a") as file:
        print("fork", file=file)
    return fork()
os.fork = noted
runpy.run_path({str(REPOSITORY / "stages/prepare.py")!r}, run_name="__main__")
""")
    return script


def error_line(result: subprocess.CompletedProcess) -> str:
    """The text after `error: ` of a script that a user's mistake has ended: status 1 and a single line on stderr."""
    assert result.returncode == 1, f"exit status {result.returncode}: {result.stderr}"
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.endswith("\n"), result.stderr
    assert result.stderr.startswith("error: "), result.stderr
    return result.stderr.removeprefix("error: ").rstrip("\n")
