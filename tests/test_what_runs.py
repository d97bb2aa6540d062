"""What runs again after a change: every key of params.yaml and every file under stages/ has its row.

DVC decides here as it always does, over the repository's own dvc.yaml; the scripts are stood in for by one that takes
no time and writes something new each time it runs.
"""

from collections.abc import Iterator
from modulefinder import ModuleFinder
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY, STAGE_NAMES, STAGES, Repository, kaggle_files, stand_in_repository, write_zip
from dvc.repo import Repo
from networkx import ancestors

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # DVC's own

EVERYTHING = set(STAGE_NAMES)
NETWORKS = EVERYTHING - {"prepare"}  # both of them, and what follows
COMBINATION = {"ensemble", "report"}
EVALUATION = {"evaluate"} | COMBINATION
NOTHING: set[str] = set()

# Each key of params.yaml: another value, and what runs then.
PARAMS = {
    "source": ("data/raw/other.zip", EVERYTHING),
    "lr": (0.0005, NETWORKS),
    "precision": ("bfloat16", NETWORKS),
    "test_time_flip": (True, EVALUATION),
    "launcher": ("env python", NETWORKS),
    "prepare.image_size": (64, EVERYTHING),
    "prepare.resize": ("center_crop", EVERYTHING),
    "prepare.split.train": (22, EVERYTHING),
    "prepare.split.validation": (10, EVERYTHING),
    "prepare.split.test": (10, EVERYTHING),
    "prepare.seed": (2, EVERYTHING),
    "networks.resnet18.weights": ("other-01234567.pth", {"train_resnet18"} | EVALUATION),
    "networks.resnet34.weights": ("other-01234567.pth", {"train_resnet34"} | EVALUATION),
    "train.layers": ("head", NETWORKS),
    "train.body_lr_factor": (0.5, NETWORKS),
    "train.head_width": (256, NETWORKS),
    "train.dropout": (0.2, NETWORKS),
    "train.optimizer": ("sgd", NETWORKS),
    "train.momentum": (0.5, NETWORKS),
    "train.lr_schedule": ("one_cycle", NETWORKS),
    "train.lr_step_size": (7, NETWORKS),
    "train.lr_gamma": (0.5, NETWORKS),
    "train.label_smoothing": (0.1, NETWORKS),
    "train.augment": ("flip", NETWORKS),
    "train.crop_scale": (0.5, NETWORKS),
    "train.image_size": (24, NETWORKS),
    "train.batch_size": (16, NETWORKS),
    "train.epochs": (3, NETWORKS),
    "train.seed": (2, NETWORKS),
    "ensemble.method": ("majority_vote", COMBINATION),
}

# Each file under stages/, and what runs when it changes.
FILES = {
    "download.py": NOTHING,  # no stage
    "verify.py": NOTHING,  # no stage
    "predict.py": NOTHING,  # nor are these
    "submission.py": NOTHING,
    "serve.py": NOTHING,
    "export.py": NOTHING,
    "audit.py": NOTHING,
    "catsdogs/audit.html.jinja": NOTHING,
    "catsdogs/inference.py": NOTHING,
    "catsdogs/serve.html.jinja": NOTHING,
    "prepare.py": EVERYTHING,
    "train.py": NETWORKS,
    "evaluate.py": EVALUATION,
    "ensemble.py": COMBINATION,
    "report.py": {"report"},
    "catsdogs/__init__.py": EVERYTHING,
    "catsdogs/checkpoint.py": NETWORKS,
    "catsdogs/charts.py": {"report"},
    "catsdogs/combining.py": COMBINATION,
    "catsdogs/compute.py": NETWORKS,
    "catsdogs/corrections.py": EVERYTHING,
    "catsdogs/dataset.py": NETWORKS,
    "catsdogs/distributed.py": NETWORKS,
    "catsdogs/errors.py": EVERYTHING,
    "catsdogs/files.py": EVERYTHING,
    "catsdogs/gallery.html.jinja": {"report"},
    "catsdogs/graph.py": {"report"},
    "catsdogs/networks.py": NETWORKS,
    "catsdogs/packing.py": EVERYTHING,
    "catsdogs/page.html.jinja": {"report"},
    "catsdogs/pages.py": {"report"},
    "catsdogs/params.py": EVERYTHING,
    "catsdogs/photos.py": EVERYTHING,
    "catsdogs/process.py": EVERYTHING,
    "catsdogs/report.html.jinja": {"report"},
    "catsdogs/scores.py": EVALUATION,
    "catsdogs/weights.py": NETWORKS,
}


@pytest.fixture(scope="module")
def stood_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repository]:
    """A repository in which all is up to date; the tests change one thing after the other, and most change it back."""
    repository = stand_in_repository(tmp_path_factory.mktemp("stood_in") / "repository")
    write_zip(repository.root / PARAMS["source"][0], kaggle_files(cats=2, dogs=2))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repository.root)
        assert run_by_repro() == EVERYTHING
        yield repository


def run_by_repro() -> set[str]:
    """What `dvc repro` does, in this process (the command's start takes longer than all else here)."""
    with Repo() as repo:
        return {stage.name for stage in repo.reproduce()}


def to_be_run() -> set[str]:
    """What `dvc repro` would do: the stages that `dvc status` calls changed, and all that follow them."""
    with Repo() as repo:
        changed = repo.status(targets=STAGE_NAMES)
        stages = {stage.name: stage for stage in repo.index.stages if stage.name in STAGE_NAMES}
        followers = [ancestors(repo.index.graph, stages[name]) for name in changed]
        return {*changed, *(stage.name for stage in set().union(*followers))} & stages.keys()


def flatten(params: dict, above: str = "") -> Iterator[str]:
    for key, value in params.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{above}{key}.")
        else:
            yield f"{above}{key}"


def test_every_param_and_every_file_has_its_row() -> None:
    assert set(PARAMS) == set(flatten(yaml.safe_load((REPOSITORY / "params.yaml").read_text())))
    files = {path.relative_to(STAGES).as_posix() for path in STAGES.rglob("*") if path.is_file()}
    assert set(FILES) == {file for file in files if "__pycache__" not in file}


@pytest.mark.parametrize("key", PARAMS)
def test_a_param_runs_what_reads_it_and_nothing_else(stood_in: Repository, key: str) -> None:
    value, stages = PARAMS[key]
    *sections, name = key.split(".")
    section = stood_in.params
    for part in sections:
        section = section[part]
    before = section[name]
    assert before != value
    section[name] = value
    stood_in.write_params()
    found = to_be_run()
    section[name] = before
    stood_in.write_params()
    assert found == stages


@pytest.mark.parametrize("file", FILES)
def test_a_file_of_code_runs_what_imports_it_and_nothing_else(stood_in: Repository, file: str) -> None:
    code = stood_in.root / "stages" / file
    before = code.read_bytes()
    code.write_bytes(before + b"\n# a change\n")
    found = to_be_run()
    code.write_bytes(before)
    assert found == FILES[file]


def test_photos_and_corrections_run_everything_and_a_comment_in_the_params_nothing(stood_in: Repository) -> None:
    stood_in.photos(kaggle_files(cats=3, dogs=3), stood_in.params["source"])
    assert run_by_repro() == EVERYTHING
    stood_in.correct("cat.0.jpg: leave out")
    assert run_by_repro() == EVERYTHING
    with (stood_in.root / "params.yaml").open("a") as params:
        params.write("# a comment\n")
    assert run_by_repro() == NOTHING


@pytest.mark.parametrize("name", STAGE_NAMES)
def test_a_stage_depends_on_exactly_the_files_that_it_imports(name: str) -> None:
    stage = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"][name]
    finder = ModuleFinder(path=[str(STAGES)])  # all else is not followed
    finder.run_script(str(REPOSITORY / stage["cmd"].split()[1]))
    files = {module.__file__ for module in finder.modules.values()} - {None}  # None: built into Python
    imported = {Path(file).relative_to(REPOSITORY).as_posix() for file in files}
    assert {dep for dep in stage["deps"] if dep.startswith("stages/") and dep.endswith(".py")} == imported
