"""What DVC reruns after a change of params, code or packages. Each key of params.yaml has a row here.

DVC decides as it always does, from the repository's own dvc.yaml; the stages, except track_code, are stand-ins that
take no time and write something new each time they run.
"""

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from modulefinder import ModuleFinder
from pathlib import Path

from tests.support import forked
from tests.support.photos import kaggle_files, write_zip
from tests.support.projects import REPOSITORY, STAGE_NAMES, Repository, copy_of

import pytest
import yaml
from dvc.repo import Repo
from networkx import ancestors

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # DVC's own

EVERYTHING = {*STAGE_NAMES} - {"track_code"}  # which runs after any change of code
NETWORKS = EVERYTHING - {"prepare", "reject"}  # both, and what follows
COMBINATION = {"ensemble", "report"}
EVALUATION = {"evaluate"} | COMBINATION
NOTHING: set[str] = set()

Texts = dict[Path, str]  # the files that track_code writes

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
    "prepare.min_photos_per_class": (3, EVERYTHING),
    "prepare.seed": (2, EVERYTHING),
    "networks.resnet18.weights": ("other-01234567.pth", {"train_resnet18", "reject"} | EVALUATION),
    "networks.resnet34.weights": ("other-01234567.pth", {"train_resnet34", "reject"} | EVALUATION),
    "train.launcher": ("env python", NETWORKS),
    "train.layers": ("head", NETWORKS),
    "train.backbone_lr_factor": (0.5, NETWORKS),
    "train.batchnorm_statistics": ("fixed", NETWORKS),
    "train.head_init": ("fitted", NETWORKS),
    "train.head_width": (256, NETWORKS),
    "train.dropout": (0.2, NETWORKS),
    "train.optimizer": ("sgd", NETWORKS),
    "train.momentum": (0.5, NETWORKS),
    "train.lr_schedule": ("one_cycle", NETWORKS),
    "train.lr_step_size": (7, NETWORKS),
    "train.lr_gamma": (0.5, NETWORKS),
    "train.class_weights": ("balanced", NETWORKS),
    "train.label_smoothing": (0.1, NETWORKS),
    "train.augment": ("flip", NETWORKS),
    "train.crop_scale": (0.5, NETWORKS),
    "train.image_size": (32, NETWORKS),
    "train.batch_size": (16, NETWORKS),
    "train.epochs": (3, NETWORKS),
    "train.seed": (2, NETWORKS),
    "evaluate.test_time_flip": (True, EVALUATION),
    "ensemble.method": ("majority_vote", COMBINATION),
    "reject.false_rejection_rate": (0.01, {"reject", "report"}),
}

# Code: a module or template, and the stages that run if it says something else.
CODE = {
    "pipeline/core/__init__.py": EVERYTHING,
    "pipeline/core/files.py": EVERYTHING,
    "pipeline/core/code.py": NOTHING,  # it decides what is in data/code, which shows it if it decides differently
    "pipeline/core/packed.py": EVERYTHING,
    "pipeline/core/read_table.py": {"reject"} | EVALUATION,
    "pipeline/core/split_table.py": {"reject"} | EVALUATION,
    "pipeline/core/params.py": EVERYTHING,
    "pipeline/core/params_check.py": NOTHING,  # it only raises errors
    "pipeline/core/sections/prepare.py": EVERYTHING,
    "pipeline/core/sections/train.py": NETWORKS,
    "pipeline/core/sections/evaluate.py": EVALUATION,
    "pipeline/core/sections/ensemble.py": EVALUATION,  # its methods, as for combining.py
    "pipeline/core/sections/reject.py": {"reject", "report"},
    "pipeline/core/tool_paths.py": NOTHING,
    "pipeline/photos/decoding.py": EVERYTHING,
    "pipeline/photos/summary.py": EVERYTHING,
    "pipeline/networks/building.py": NETWORKS | {"reject"},
    "pipeline/networks/startup.py": NETWORKS | {"reject"},  # imported by the package's __init__
    "pipeline/networks/checkpoint.py": NETWORKS,
    "pipeline/networks/training.py": NETWORKS,  # imported in main()
    "pipeline/networks/fitting.py": NETWORKS,
    "pipeline/networks/rejection.py": {"reject", "report"},  # imported in a function
    "pipeline/networks/explaining.py": EVALUATION,
    "pipeline/scores/scoring.py": EVALUATION,
    "pipeline/scores/evaluating.py": EVALUATION,
    "pipeline/scores/ensembling.py": EVALUATION,  # also how evaluate looks for the hardest photos
    "pipeline/scores/combining.py": EVALUATION,  # evaluate looks for the hardest photos with any method
    "pipeline/pages/plots.py": {"report"},
    "pipeline/pages/report.py": {"report"},
    "pipeline/pages/templates/report.html.jinja": {"report"},
    "pipeline/pages/templates/page.html.jinja": {"report"},  # which that template extends
    "pipeline/pages/templates/gallery.html.jinja": {"report"},  # from which it imports
    "pipeline/pages/templates/audit.html.jinja": NOTHING,
    "pipeline/core/results.py": NOTHING,  # for the tools
    "pipeline/runs/reading.py": NOTHING,
    "pipeline/inference/ensemble.py": NOTHING,
    "stages/prepare.py": EVERYTHING,
    "stages/train.py": NETWORKS,
    "stages/evaluate.py": EVALUATION,
    "stages/ensemble.py": COMBINATION,
    "stages/reject.py": {"reject", "report"},
    "stages/report.py": {"report"},
    "tools/predict.py": NOTHING,
}

# Packages, and the stages that run if requirements.txt or a file in requirements/ locks another version.
PACKAGES = {
    "torch": NETWORKS | {"reject"},
    "pillow": EVERYTHING,
    "pillow-heif": EVERYTHING,  # optional
    "timm": NETWORKS | {"reject"},  # optional
    "scikit-learn": EVALUATION,
    "matplotlib": {"report"},
    "jinja2": {"report"},  # though PyTorch requires it
    "dvc": NOTHING,
    "tqdm": NOTHING,
    "fastapi": NOTHING,
}


@pytest.fixture(scope="module")
def stand_in(finished_stand_ins: Repository, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repository]:
    """A repository in which all is up to date; each test changes something, and most change it back."""
    repository = copy_of(finished_stand_ins, tmp_path_factory.mktemp("stand_in"))
    (repository.root / "data/raw/train.zip.dvc").unlink()
    write_zip(repository.root / PARAMS["prepare.source"][0], kaggle_files(cats=2, dogs=2))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repository.root)
        patch.setenv("PATH", forked.on_path(os.environ)["PATH"])
        assert run_by_repro() == NOTHING
        yield repository


@pytest.fixture(scope="module")
def run_by_texts() -> dict[frozenset[Path], set[str]]:
    """What `would_run_with` finds out."""
    return {}


@pytest.fixture(scope="module")
def with_changed_code(stand_in: Repository) -> Texts:
    """What track_code writes if all files of CODE say something else."""
    with changed(stand_in, dict.fromkeys(CODE, lambda text: f"{text}\nCHANGED = 1\n")):
        return track_code(stand_in)


@pytest.fixture(scope="module")
def with_other_versions(stand_in: Repository) -> Texts:
    """What track_code writes if all PACKAGES are locked at other versions."""

    def raise_versions(text: str) -> str:
        return re.sub(rf"^({'|'.join(PACKAGES)})==", r"\1==9", text, flags=re.MULTILINE)

    locks = ["requirements.txt", *(f"requirements/{path.name}" for path in REPOSITORY.glob("requirements/*.txt"))]
    with changed(stand_in, dict.fromkeys(locks, raise_versions)):
        return track_code(stand_in)


def run_by_repro() -> set[str]:
    """What `dvc repro` runs, in this process (starting the command would take longer than everything else here)."""
    with Repo() as repo:
        return {stage.name for stage in repo.reproduce()}


def would_run() -> set[str]:
    """What `dvc repro` would run after track_code: the stages that `dvc status` calls changed, and all that follow."""
    with Repo() as repo:
        changed = repo.status().keys() - {"track_code"}
        stages = {stage.name: stage for stage in repo.index.stages if stage.name in STAGE_NAMES}
        followers = [ancestors(repo.index.graph, stages[name]) for name in changed]
        return {*changed, *(stage.name for stage in set().union(*followers))} & stages.keys()


def track_code(repository: Repository) -> Texts:
    """What track_code writes now; its files are afterwards as before."""
    before = {path: path.read_text() for path in (repository.root / "data/code").iterdir()}
    done = forked.run(["stages/track_code.py"], repository.root, os.environ)
    assert done.returncode == 0, done.stderr
    texts = {path: path.read_text() for path in before}
    write(before)
    return texts


def write(texts: Texts) -> None:
    for path, text in texts.items():
        path.write_text(text)


def would_run_with(texts: Texts, run_by_texts: dict[frozenset[Path], set[str]]) -> set[str]:
    """What `dvc repro` would run if track_code wrote these texts.

    DVC is asked only once for each set of texts that differ; `run_by_texts` has its answers.
    """
    before = {path: path.read_text() for path in texts}
    differing = frozenset(path for path in texts if texts[path] != before[path])
    if differing not in run_by_texts:
        write(texts)
        run_by_texts[differing] = would_run()
        write(before)
    return run_by_texts[differing]


def with_changed_lines(after: Texts, start: str) -> Texts:
    """The texts as they are, but the lines that start with `start` as in `after`."""
    return {
        path: "".join(
            new if new.startswith(start) else old
            for old, new in zip(path.read_text().splitlines(True), text.splitlines(True), strict=True)
        )
        for path, text in after.items()
    }


def flatten(params: dict, above: str = "") -> Iterator[str]:
    for key, value in params.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{above}{key}.")
        else:
            yield f"{above}{key}"


def test_dvc_keeps_the_files_that_a_stage_wrote_and_copies_none(finished_stand_ins: Repository) -> None:
    """They are gigabytes. DVC links them into its cache only if hard links are the first of its types of links."""
    root = finished_stand_ins.root
    for out in yaml.safe_load((root / "dvc.lock").read_text())["stages"]["prepare"]["outs"]:
        kept = root / ".dvc/cache/files/md5" / out["md5"][:2] / out["md5"][2:]
        assert kept.samefile(root / out["path"])


def test_the_table_here_covers_each_param() -> None:
    assert set(PARAMS) == set(flatten(yaml.safe_load((REPOSITORY / "params.yaml").read_text())))


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


@pytest.mark.parametrize("own", [{"lr": 0.0005}, {"train": {"epochs": 9}}])
def test_dvc_trains_only_the_network_whose_own_params_change(stand_in: Repository, own: dict) -> None:
    networks = stand_in.params["networks"]
    before = networks["resnet34"]
    networks["resnet34"] = before | own
    stand_in.write_params()
    found = would_run()
    networks["resnet34"] = before
    stand_in.write_params()
    assert found == {"train_resnet34", "reject"} | EVALUATION


@pytest.mark.parametrize(
    "file", ["stages/report.py", "pipeline/core/files.py", "requirements.txt", "requirements/s3.txt"]
)
def test_dvc_runs_track_code_if_code_or_a_lock_changes(stand_in: Repository, file: str) -> None:
    with changed(stand_in, {file: lambda text: f"{text}\n"}), Repo() as repo:
        assert "track_code" in repo.status("track_code")


@pytest.mark.parametrize("file", CODE)
def test_dvc_reruns_only_what_uses_changed_code(with_changed_code: Texts, run_by_texts: dict, file: str) -> None:
    assert would_run_with(with_changed_lines(with_changed_code, f"{file} "), run_by_texts) == CODE[file]


@pytest.mark.parametrize("package", PACKAGES)
def test_dvc_reruns_only_what_uses_a_package_that_is_locked_at_another_version(
    with_other_versions: Texts, run_by_texts: dict, package: str
) -> None:
    assert would_run_with(with_changed_lines(with_other_versions, f"{package}=="), run_by_texts) == PACKAGES[package]


@pytest.mark.slow
def test_dvc_reruns_nothing_for_comments_docstrings_and_formatting(stand_in: Repository) -> None:
    """In every file at once, by ruff, with other quotes and line breaks than here."""

    def comment(text: str) -> str:
        text = re.sub(r'(\A|:\n *)"""', r'\1"""Another docstring. ', text)
        return "# a comment\n" + text.replace("\n\n\n", "\n\n\n# a comment\n") + '\n"""Nothing."""\n'

    files = [path for folder in ("stages", "pipeline") for path in code_files(folder) if path.suffix == ".py"]
    names = [path.relative_to(REPOSITORY).as_posix() for path in files]
    with changed(stand_in, dict.fromkeys(names, comment)):
        commented = {name: Path(name).read_text() for name in names}
        style = ["--config", "line-length=60", "--config", "format.quote-style='single'"]
        style += ["--config", "format.skip-magic-trailing-comma=true"]
        subprocess.run([sys.executable, "-m", "ruff", "format", "--quiet", "--isolated", *style, *names], check=True)
        assert sum(Path(name).read_text() != text for name, text in commented.items()) > 50
        assert run_by_repro() == {"track_code"}
        assert would_run() == NOTHING


def test_a_new_way_to_combine_or_a_section_of_the_report_retrains_nothing(
    stand_in: Repository, run_by_texts: dict
) -> None:
    method = {
        "pipeline/core/sections/ensemble.py": lambda text: text.replace(
            '"majority_vote",', '"majority_vote", "median",'
        ),
        "pipeline/scores/combining.py": lambda text: f"{text}\n\ndef median(): ...\n",
    }
    with changed(stand_in, method):
        assert would_run_with(track_code(stand_in), run_by_texts) == EVALUATION
    section = {
        "pipeline/pages/report.py": lambda text: f"{text}\n\ndef describe_hardware(): ...\n",
        "pipeline/pages/templates/report.html.jinja": lambda text: text.replace("</section>", "</section>\n<hr>"),
    }
    with changed(stand_in, section):
        assert would_run_with(track_code(stand_in), run_by_texts) == {"report"}


@contextmanager
def changed(repository: Repository, changes: Mapping[str, Callable[[str], str]]) -> Iterator[None]:
    """Change the text of files, and change it back."""
    before = {repository.root / name: (repository.root / name).read_text() for name in changes}
    try:
        for (path, text), change in zip(before.items(), changes.values(), strict=True):
            path.write_text(change(text))
        assert any(path.read_text() != text for path, text in before.items())
        yield
    finally:
        for path, text in before.items():
            path.write_text(text)


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


@pytest.mark.parametrize("name", sorted(EVERYTHING))
def test_each_stage_depends_on_the_code_and_params_that_its_script_reads(name: str) -> None:
    stage = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"][name]
    script = stage["cmd"].removeprefix("${train.launcher}").split("/")[-1].split(".")[0]
    [code] = [dep for dep in stage["deps"] if dep.startswith(("data/code", "stages", "pipeline"))]
    assert code == f"data/code/{script}.txt"
    params = runpy.run_path(f"{REPOSITORY}/stages/{script}.py")["Params"]
    assert {key.partition(".")[0] for key in stage["params"]} == {*params.model_fields}


# What each package may import besides itself, without circles.
MAY_IMPORT = {
    "core": set(),
    "photos": {"core"},
    "networks": {"core", "scores"},
    "scores": {"core"},
    "pages": {"core", "scores"},
    "editing": {"core"},
    "inference": {"core", "photos", "networks", "scores", "pages"},
    "export": {"core", "photos", "networks", "scores", "pages", "inference"},
    "audit.py": {"core", "networks", "scores", "pages"},
    "folds": {"core", "networks", "scores", "pages"},
    "runs": {"core", "networks", "scores", "pages", "folds", "editing"},
    "search": {"core", "pages", "runs", "scores", "editing"},
    "tables.py": {"core", "editing"},
}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_only_what_they_may(package: str) -> None:
    for file in code_files(f"pipeline/{package}"):
        if file.suffix == ".py":
            packages = {Path(name).parts[1] for name in imported_by(file)} - {package, "__init__.py"}
            assert packages <= MAY_IMPORT[package], file


def imported_by(script: Path) -> set[str]:
    """The files of the pipeline that `script` imports, directly or indirectly, and itself."""
    finder = ModuleFinder(path=[str(REPOSITORY)])  # nothing else is followed
    finder.run_script(str(script))
    files = {module.__file__ for module in finder.modules.values()} - {None}  # None: built into Python
    return {Path(file).relative_to(REPOSITORY).as_posix() for file in files}
