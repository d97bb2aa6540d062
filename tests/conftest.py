"""The fixtures that the tests share, and the order in which the tests run."""

import gc
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from run import copy_pipeline
from tests.support import forked
from tests.support.photos import flower_files, kaggle_files
from tests.support.projects import STAGE_NAMES, Project, Repository, copy_of, stand_in_repository

import pytest
from filelock import FileLock

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# No messages of DVC to its makers. (The repository's configuration says so, too, but `verify` makes another one.)
os.environ["DVC_NO_ANALYTICS"] = "1"
# A shell starts background jobs with SIGINT ignored, and processes inherit that; tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Compile each module once, and not in each process.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
gc.disable()  # until everything is imported: there is little garbage, and looking for it takes a while
# No GPU, and one thread per process: with images this small, more threads only get in each other's way.
os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
# As in the activated environment: the stages' `python` is the one that runs the tests.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

# Files that take seconds or minutes, the longest first, so that the test processes end at about the same time.
LONG_FILES = (
    "reproducible",  # builds `finished`, while the other process does without it
    "demo",
    "bench",
    "compare",
    "export",
    "train",
    "experiments",
    "interruptions",
    "parallel",
    "pipeline",
    "gpu_check",
    "remote",
    "pull_request",
    "recipe",
    "networks",
    "what_runs",
    "fuzz",
    "evaluate",
    "report",
    "building",
    "predict",
    "audit",
    "serve",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--plain", action="store_true", help="run each program in a new process, without the fork server")


def pytest_configure(config: pytest.Config) -> None:
    """Start the fork server, which the test processes share."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    stack = ExitStack()
    config.add_cleanup(stack.close)
    # What DVC would keep of each repository in /var/tmp.
    site_cache = TemporaryDirectory(prefix="site_cache_", ignore_cleanup_errors=True)
    os.environ["DVC_SITE_CACHE_DIR"] = stack.enter_context(site_cache)
    if not config.getoption("plain"):
        stack.enter_context(forked.fork_server())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The short files first."""
    order = {f"test_{name}": place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: order.get(item.path.stem, -1))


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # or Triton, where a test has imported it, reports what Python has not freed as leaks


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """An empty scratch project."""
    return Project(tmp_path / "project")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose 20 photos (10 cats, 10 dogs, in Kaggle's layout) are prepared: 8/4/4. Read only."""
    project = Project(tmp_path_factory.mktemp("prepared"))
    project.photos(kaggle_files(cats=10, dogs=10))
    project.prepare()
    return project


@pytest.fixture
def tiny(prepared: Project, tmp_path: Path) -> Project:
    """A copy of `prepared`, free to be changed: a training of one epoch has two steps."""
    return copy_of(prepared, tmp_path)


@pytest.fixture(scope="session")
def prepared_small(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A prepared project of 48/24/24 easy photos, which networks learn completely from random weights. Read only."""
    project = Project(tmp_path_factory.mktemp("small"))
    project.photos(kaggle_files(cats=48, dogs=48))
    project.split(train=48, validation=24, test=24)
    project.params["train"] |= {"layers": "all", "epochs": 3, "batch_size": 8}
    project.prepare()
    return project


@pytest.fixture
def small(prepared_small: Project, tmp_path: Path) -> Project:
    """A copy of `prepared_small`, free to be changed."""
    return copy_of(prepared_small, tmp_path)


@pytest.fixture(scope="session")
def flowers(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project of 36/12/12 photos of three classes, whose networks are trained, scored and combined. Read only.

    Photos are cropped, not squeezed, and predictions are averaged with those for the mirror images.
    """
    with shared(tmp_path_factory, "flowers") as (folder, is_finished):
        project = Project(folder)
        project.params["classes"] = "auto"
        project.params["prepare"]["resize"] = "center_crop"
        project.params["evaluate"]["test_time_flip"] = True
        project.split(train=36, validation=12, test=12)
        project.params["train"] |= {"layers": "all", "epochs": 1, "batch_size": 6}
        if not is_finished:
            project.photos(flower_files(20))
            for script in ("prepare.py", "train.py resnet18", "train.py resnet34", "evaluate.py", "ensemble.py"):
                project.succeed(*script.split())
    return project


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """A repository in which `dvc repro` has run and its results are committed. Read only."""
    with shared(tmp_path_factory, "finished") as (folder, is_finished):
        repository = Repository(folder)
        if is_finished:
            return repository
        copy_pipeline(repository.root)
        repository.git("init", "--quiet")
        repository.photos(kaggle_files(cats=24, dogs=24))
        repository.split(train=24, validation=12, test=12)
        repository.params["train"]["batch_size"] = 8
        repository.write_params()
        repository.commit()
        assert repository.stages_run_by("repro") == list(STAGE_NAMES)
        repository.commit()
    return repository


@pytest.fixture(scope="session")
def finished_stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """A `stand_in_repository` in which all stages have run, its archive tracked by DVC, all committed. Read only."""
    with shared(tmp_path_factory, "stand_ins") as (folder, is_finished):
        if is_finished:
            return Repository(folder)
        repository = stand_in_repository(folder)
        repository.dvc("add", "data/raw/train.zip")
        repository.dvc("repro")
        repository.commit()
    return repository


@contextmanager
def shared(factory: pytest.TempPathFactory, name: str) -> Iterator[tuple[Path, bool]]:
    """A folder that all test processes share, and whether one of them has filled it; the others wait until it has."""
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    with FileLock(base / f"{name}.lock"):
        yield base / name, (base / f"{name}.done").exists()
        (base / f"{name}.done").touch()


@pytest.fixture
def repository(finished: Repository, tmp_path: Path) -> Repository:
    """A copy of the finished repository, free to be changed."""
    return copy_of(finished, tmp_path)


@pytest.fixture
def stand_ins(finished_stand_ins: Repository, tmp_path: Path) -> Repository:
    """A copy of the repository of stand-ins, free to be changed."""
    return copy_of(finished_stand_ins, tmp_path)


@pytest.fixture(scope="session")
def browser() -> Iterator["Browser"]:
    """The installed Chromium, without a window; tests that ask for it are skipped if it or Playwright is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    options = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's sandbox refuses root
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=executable, args=options)
        yield chromium
        chromium.close()
