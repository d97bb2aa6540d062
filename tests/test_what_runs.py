"""What DVC reruns after a change: each key of params.yaml and all code has a row here.

DVC decides as it always does, from the repository's own dvc.yaml; the stages are stand-ins that take no time and write
something new each time they run.
"""

import os
from collections.abc import Iterator
from modulefinder import ModuleFinder
from pathlib import Path

import forked
import pytest
import yaml
from dvc.repo import Repo
from networkx import ancestors
from photos import kaggle_files, write_zip
from projects import REPOSITORY, STAGE_NAMES, Repository, stand_in_repository

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # DVC's own

EVERYTHING = set(STAGE_NAMES)
NETWORKS = EVERYTHING - {"prepare", "reject"}  # both, and what follows
COMBINATION = {"ensemble", "report"}
EVALUATION = {"evaluate"} | COMBINATION
NOTHING: set[str] = set()

# Each key of params.yaml: a different value, and what then runs.
PARAMS = {
    "classes": ("auto", EVERYTHING),
    "lr": (0.0005, NETWORKS),
    "device": ("cpu", NETWORKS | {"reject"}),
    "precision": ("bfloat16", NETWORKS | {"reject"}),
    "threads": (2, NETWORKS | {"reject"}),
    "prepare.source": ("data/raw/other.zip", EVERYTHING),
    "prepare.labels": ("data/other.csv", EVERYTHING),
    "prepare.image_size": (64, EVERYTHING),
    "prepare.resize": ("center_crop", EVERYTHING),
    "prepare.split.train": (22, EVERYTHING),
    "prepare.split.validation": (10, EVERYTHING),
    "prepare.split.test": (10, EVERYTHING),
    "prepare.seed": (2, EVERYTHING),
    "networks.resnet18.weights": ("other-01234567.pth", {"train_resnet18", "reject"} | EVALUATION),
    "networks.resnet34.weights": ("other-01234567.pth", {"train_resnet34", "reject"} | EVALUATION),
    "train.launcher": ("env python", NETWORKS),
    "train.layers": ("head", NETWORKS),
    "train.body_lr_factor": (0.5, NETWORKS),
    "train.batchnorm_statistics": ("fixed", NETWORKS),
    "train.head_init": ("fitted", NETWORKS),
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
    "train.image_size": (32, NETWORKS),
    "train.batch_size": (16, NETWORKS),
    "train.epochs": (3, NETWORKS),
    "train.seed": (2, NETWORKS),
    "evaluate.test_time_flip": (True, EVALUATION),
    "ensemble.method": ("majority_vote", COMBINATION),
    "reject.share": (0.01, {"reject", "report"}),
}

# Each room of the pipeline and each script, and what runs if a file there changes.
CODE = {
    "pipeline/core": EVERYTHING,
    "pipeline/photos": EVERYTHING,
    "pipeline/networks": NETWORKS | {"reject"},
    "pipeline/scores": EVALUATION,  # a different way to combine predictions retrains nothing
    "pipeline/pages": {"report"},
    "pipeline/differences.py": NOTHING,  # for the tools
    "pipeline/runs.py": NOTHING,
    "pipeline/fingerprint.py": NOTHING,
    "pipeline/inference.py": NOTHING,
    "stages/prepare.py": EVERYTHING,
    "stages/train.py": NETWORKS,
    "stages/evaluate.py": EVALUATION,
    "stages/ensemble.py": COMBINATION,
    "stages/reject.py": {"reject", "report"},
    "stages/report.py": {"report"},
    "tools": NOTHING,
}


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repository]:
    """A repository in which all is up to date; each test changes something, and most change it back."""
    repository = stand_in_repository(tmp_path_factory.mktemp("stand_in") / "repository")
    write_zip(repository.root / PARAMS["prepare.source"][0], kaggle_files(cats=2, dogs=2))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repository.root)
        patch.setenv("PATH", forked.on_path(os.environ)["PATH"])
        assert run_by_repro() == EVERYTHING
        yield repository


def run_by_repro() -> set[str]:
    """What `dvc repro` runs, in this process (starting the command would take longer than everything else here)."""
    with Repo() as repo:
        return {stage.name for stage in repo.reproduce()}


def would_run() -> set[str]:
    """What `dvc repro` would run: the stages that `dvc status` calls changed, and all that follow them."""
    with Repo() as repo:
        changed = repo.status()
        stages = {stage.name: stage for stage in repo.index.stages if stage.name in STAGE_NAMES}
        followers = [ancestors(repo.index.graph, stages[name]) for name in changed]
        return {*changed, *(stage.name for stage in set().union(*followers))} & stages.keys()


def flatten(params: dict, above: str = "") -> Iterator[str]:
    for key, value in params.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{above}{key}.")
        else:
            yield f"{above}{key}"


def test_dvc_keeps_the_files_that_a_stage_wrote_and_copies_none(stand_in: Repository) -> None:
    """They are gigabytes. DVC links them into its cache only if hard links are the first of its types of links."""
    for out in yaml.safe_load((stand_in.root / "dvc.lock").read_text())["stages"]["prepare"]["outs"]:
        kept = stand_in.root / ".dvc/cache/files/md5" / out["md5"][:2] / out["md5"][2:]
        assert kept.samefile(stand_in.root / out["path"])


def test_tables_here_cover_each_param_and_all_code() -> None:
    assert set(PARAMS) == set(flatten(yaml.safe_load((REPOSITORY / "params.yaml").read_text())))
    files = [path.relative_to(REPOSITORY) for folder in ("stages", "pipeline", "tools") for path in code_files(folder)]
    without = [file.as_posix() for file in files if not any(file.is_relative_to(part) for part in CODE)]
    assert without == ["pipeline/__init__.py"]
    assert (REPOSITORY / "pipeline/__init__.py").read_text().count("\n") == 1  # a docstring, so nothing depends on it


def code_files(part: str) -> list[Path]:
    """The files in a folder of the repository, or the file of that name."""
    path = REPOSITORY / part
    files = [path] if path.is_file() else path.rglob("*")
    return sorted(file for file in files if file.is_file() and "__pycache__" not in file.parts)


@pytest.mark.parametrize("key", PARAMS)
def test_dvc_reruns_only_what_reads_a_changed_param(stand_in: Repository, key: str) -> None:
    value, stages = PARAMS[key]
    *sections, name = key.split(".")
    section = stand_in.params
    for part in sections:
        section = section[part]
    before = section[name]
    assert before != value
    section[name] = value
    stand_in.write_params()
    found = would_run()
    section[name] = before
    stand_in.write_params()
    assert found == stages


@pytest.mark.parametrize("part", CODE)
def test_dvc_reruns_only_what_imports_changed_code(stand_in: Repository, part: str) -> None:
    code = stand_in.root / code_files(part)[-1].relative_to(REPOSITORY)
    before = code.read_bytes()
    code.write_bytes(before + b"\n# a change\n")
    found = would_run()
    code.write_bytes(before)
    assert found == CODE[part]


def test_dvc_reruns_everything_for_photos_labels_and_corrections_but_nothing_for_a_comment(
    stand_in: Repository,
) -> None:
    source = stand_in.root / stand_in.params["prepare"]["source"]
    for path in (source, stand_in.root / "data/corrections.txt", stand_in.root / "data/labels.csv"):
        before = path.read_bytes()
        path.write_bytes(before + b"cat.0.jpg: leave out\n")
        assert would_run() == EVERYTHING
        path.write_bytes(before)
    with (stand_in.root / "params.yaml").open("a") as params:
        params.write("# a comment\n")
    assert would_run() == NOTHING


@pytest.mark.parametrize("name", STAGE_NAMES)
def test_stages_depend_on_the_script_and_the_rooms_that_they_import(name: str) -> None:
    stage = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"][name]
    imported = imported_by(REPOSITORY / stage["cmd"].split()[1]) - {"pipeline/__init__.py"}
    code = [dep for dep in stage["deps"] if dep.startswith(("stages/", "pipeline/"))]
    for dep in code:
        assert any(Path(file).is_relative_to(dep) for file in imported), f"{dep} is not imported"
    assert [file for file in imported if not any(Path(file).is_relative_to(dep) for dep in code)] == []


# What each room may import besides itself, without circles.
MAY_IMPORT = {
    "core": set(),
    "photos": {"core"},
    "networks": {"core"},
    "scores": {"core"},
    "pages": {"core", "scores"},
    "inference.py": {"core", "photos", "networks", "scores"},
    "runs.py": {"core", "scores"},
    "fingerprint.py": {"core", "networks", "scores"},
    "differences.py": set(),
}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_rooms_import_only_what_they_may(room: str) -> None:
    for file in code_files(f"pipeline/{room}"):
        if file.suffix == ".py":
            rooms = {Path(name).parts[1] for name in imported_by(file)} - {room, "__init__.py"}
            assert rooms <= MAY_IMPORT[room], file


def imported_by(script: Path) -> set[str]:
    """The files of the pipeline that `script` imports, directly or indirectly, and itself."""
    finder = ModuleFinder(path=[str(REPOSITORY)])  # nothing else is followed
    finder.run_script(str(script))
    files = {module.__file__ for module in finder.modules.values()} - {None}  # None: built into Python
    return {Path(file).relative_to(REPOSITORY).as_posix() for file in files}
