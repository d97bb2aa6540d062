"""What the tests share: a scratch project with its own params.yaml, and photos that the tests draw themselves."""

import csv
import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from run import GIT, clean_environment, copy_pipeline

import forked
import numpy as np
import pytest
import yaml
from filelock import FileLock
from PIL import Image
from playwright.sync_api import Browser, sync_playwright
from safetensors import safe_open

REPOSITORY = Path(__file__).resolve().parents[1]
STAGES = REPOSITORY / "stages"
SCRIPTS = sorted(
    f"{folder}/{path.name}" for folder in ("stages", "tools") for path in (REPOSITORY / folder).glob("*.py")
)
SPLITS = ("train", "validation", "test")
CLASSES = ("cat", "dog")
STAGE_NAMES = (
    "prepare",
    "train_resnet18",
    "train_resnet34",
    "evaluate",
    "ensemble",
    "report",
)  # as dvc.yaml orders them

# No GPU, and one thread a process: with pictures this small, more only stand in each other's way.
os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
# As with the environment activated: the stages' `python` is the one that runs the tests.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

Files = Mapping[str, bytes]  # what a zip or a folder holds: the path of each file, and its bytes


def draw_photo(label: str, number: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """An RGB photo, another for each `number`: cats are reddish and dogs bluish noise, easy to tell apart."""
    width, height = size
    noise = np.random.default_rng([CLASSES.index(label), number]).integers(0, 100, (height, width, 3))
    tint = {"cat": (140, 40, 20), "dog": (20, 40, 140)}[label]
    return Image.fromarray((noise + tint).astype(np.uint8))


def encode(image: Image.Image, file_format: str = "JPEG", **options: object) -> bytes:
    """The bytes of a picture file; `options` are those of Pillow's Image.save."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def photo_bytes(label: str, number: int) -> bytes:
    """A JPEG of `draw_photo(label, number)`."""
    return encode(draw_photo(label, number))


def kaggle_files(cats: int, dogs: int) -> dict[str, bytes]:
    """Kaggle's layout: train/cat.0.jpg, train/dog.0.jpg."""
    return {
        f"train/{label}.{number}.jpg": photo_bytes(label, number)
        for label, count in zip(CLASSES, (cats, dogs), strict=True)
        for number in range(count)
    }


def petimages_files(cats: int, dogs: int) -> dict[str, bytes]:
    """Microsoft's layout: PetImages/Cat/0.jpg, PetImages/Dog/0.jpg, a Thumbs.db in each folder, two texts beside."""
    photos = {
        f"PetImages/{label.title()}/{number}.jpg": photo_bytes(label, number)
        for label, count in zip(CLASSES, (cats, dogs), strict=True)
        for number in range(count)
    }
    system = {"PetImages/Cat/Thumbs.db": b"thumbs", "PetImages/Dog/Thumbs.db": b"thumbs", "readme[1].txt": b"read me"}
    return photos | system


def imagefolder_files(cats: int, dogs: int, top: str = "anything") -> dict[str, bytes]:
    """An ImageFolder tree: anything/cats/x0.jpg, anything/dogs/y0.jpg."""
    return {
        f"{top}/{label}s/{letter}{number}.jpg": photo_bytes(label, number)
        for label, letter, count in zip(CLASSES, "xy", (cats, dogs), strict=True)
        for number in range(count)
    }


def write_folder(path: Path, files: Files) -> None:
    """Write `files` below the folder `path`."""
    path.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)


def write_zip(path: Path, files: Files, compression: int = zipfile.ZIP_DEFLATED) -> None:
    """Write `files` as a zip archive, its entries in the order of the mapping."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, compression)


class Project:
    """A scratch project: a folder with a params.yaml, in which the repository's stages are run as users run them.

    `params` starts as the repository's own params.yaml, shrunk: 32 pixels a side, 8/4/4 photos, no downloaded
    weights, one epoch in batches of four, and the plainest recipe.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.last_run: subprocess.CompletedProcess | None = None
        root.mkdir(parents=True, exist_ok=True)
        self.params: dict = yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
        self.params["prepare"]["image_size"] = 32
        self.split(train=8, validation=4, test=4)
        for network in self.params["networks"].values():
            network["weights"] = "none"
        self.params["lr"] = 0.001
        self.params["train"] |= {"layers": "batchnorm", "body_lr_factor": 1.0, "lr_schedule": "step"}
        self.params["train"] |= {"label_smoothing": 0.0, "augment": "none", "image_size": 0}
        self.params["train"] |= {"epochs": 1, "batch_size": 4}

    def split(self, train: int, validation: int, test: int) -> None:
        """Set the number of photos in each split."""
        self.params["prepare"]["split"] = {"train": train, "validation": validation, "test": test}

    def photos(self, files: Files, source: str = "data/raw/train.zip") -> None:
        """Write `files` to `source`, a zip if it ends in .zip and else a folder, and name it in `params`."""
        self.params["source"] = source
        write = write_zip if source.endswith(".zip") else write_folder
        write(self.root / source, files)

    def correct(self, *lines: str) -> None:
        """Write data/corrections.txt."""
        path = self.root / "data/corrections.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def write_params(self) -> None:
        """params.yaml, and where there is none yet, a data/corrections.txt that corrects nothing."""
        if not (self.root / "data/corrections.txt").exists():
            self.correct()
        (self.root / "params.yaml").write_text(yaml.safe_dump(self.params, sort_keys=False), encoding="utf-8")

    def run(
        self,
        script: str,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        stdin: str = "",
        largest_file: int = resource.RLIM_INFINITY,
    ) -> subprocess.CompletedProcess:
        """Run `python stages/<script> <arguments>` in the project, or tools/<script>; its output comes as text.

        `env` adds to the environment, in which a new Python then starts; `largest_file` is the number of bytes after
        which writing to a file fails, as on a full disk. params.yaml is used as it lies there: call `write_params`
        before.
        """
        path = REPOSITORY / next(name for name in SCRIPTS if name.endswith(f"/{script}"))
        if env:
            command = [sys.executable, str(path), *arguments]
            self.last_run = subprocess.run(
                command, cwd=self.root, env=os.environ | env, capture_output=True, text=True, timeout=120
            )
        else:
            self.last_run = forked.run(path, arguments, self.root, os.environ, stdin, largest_file)
        return self.last_run

    def prepare(self, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess:
        """Write params.yaml and run prepare, which must succeed."""
        self.write_params()
        result = self.run("prepare.py", env=env)
        assert result.returncode == 0, result.stderr
        return result

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
        """Every file that the stages wrote, half written ones among them, with its bytes."""
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
        self.environment = clean_environment()

    def git(self, *arguments: str) -> str:
        command = [*GIT, *arguments]
        done = subprocess.run(command, cwd=self.root, env=self.environment, capture_output=True, text=True, check=True)
        return done.stdout

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "a state")

    def try_dvc(self, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess:
        """Run the `dvc` of the Python that runs the tests."""
        return subprocess.run(
            [sys.executable, "-m", "dvc", *arguments],
            cwd=self.root,
            env=self.environment | (env or {}),
            capture_output=True,
            text=True,
            timeout=300,
        )

    def dvc(self, *arguments: str, env: Mapping[str, str] | None = None) -> str:
        done = self.try_dvc(*arguments, env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def stages_run_by(self, *arguments: str) -> list[str]:
        return re.findall(r"Running stage '(\w+)'", self.dvc(*arguments))


STAND_IN = (REPOSITORY / "bench/stand_in.py").read_text()


def stand_in_repository(root: Path) -> Repository:
    """A committed repository with the pipeline, whose scripts are stand-ins; nothing has run in it yet."""
    repository = Repository(root)
    copy_pipeline(root)
    for script in {
        stage["cmd"].split()[1] for stage in yaml.safe_load((root / "dvc.yaml").read_text())["stages"].values()
    }:
        (root / script).write_text(STAND_IN)
    repository.git("init", "--quiet")
    repository.photos(kaggle_files(cats=1, dogs=1))
    repository.write_params()
    repository.commit()
    return repository


def error_line(result: subprocess.CompletedProcess) -> str:
    """The text after `error: ` of a stage that ended as it must for a user's mistake: status 1, one line, no more."""
    assert result.returncode == 1, f"exit status {result.returncode}: {result.stderr}"
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.endswith("\n"), result.stderr
    assert result.stderr.startswith("error: "), result.stderr
    return result.stderr.removeprefix("error: ").rstrip("\n")


# Files of several seconds or minutes, the longest first, so that the test processes end at about the same time.
SLOW = (
    "train",
    "predict",  # makes `finished`, while the other process does without it
    "demo",
    "reproducible",
    "bench",
    "interruptions",
    "pipeline",
    "experiments",
    "audit",
    "report",
    "what_runs",
    "parallel",
    "serve",
    "remote",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The fast files first."""
    order = {f"test_{name}": place for place, name in enumerate(SLOW)}
    items.sort(key=lambda item: order.get(item.path.stem, -1))


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """An empty scratch project."""
    return Project(tmp_path / "project")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose 20 photos (10 cats, 10 dogs, in Kaggle's layout) are prepared: 8/4/4. To be read only."""
    project = Project(tmp_path_factory.mktemp("prepared"))
    project.photos(kaggle_files(cats=10, dogs=10))
    project.prepare()
    return project


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """A repository in which `dvc repro` has run and its results are committed. To be read only.

    The test processes share it: the first that asks for it makes it.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    repository = Repository(folder / "finished")
    with FileLock(folder / "finished.lock"):
        if (folder / "finished.done").exists():
            return repository
        copy_pipeline(repository.root)
        repository.git("init", "--quiet")
        repository.photos(kaggle_files(cats=24, dogs=24))
        repository.split(train=24, validation=12, test=12)
        repository.params["train"] |= {"layers": "all", "batch_size": 8}
        repository.write_params()
        repository.commit()
        assert repository.stages_run_by("repro") == list(STAGE_NAMES)
        repository.commit()
        (folder / "finished.done").touch()
    return repository


@pytest.fixture
def repository(finished: Repository, tmp_path: Path) -> Repository:
    """A copy of the finished repository, free to be changed."""
    copy = Repository(tmp_path / "repository")
    shutil.copytree(finished.root, copy.root, dirs_exist_ok=True)
    copy.params = yaml.safe_load((copy.root / "params.yaml").read_text())
    return copy


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The Chromium that is installed, without a window; tests that ask for it are skipped where there is none."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    options = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's sandbox refuses root
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=options)
        yield chromium
        chromium.close()
