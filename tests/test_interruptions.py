"""What goes wrong from outside while a stage runs: nothing that was there is lost, and nothing half written stays."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from catsdogs.process import run_stage

import psutil
import pytest
import torch
from conftest import STAGES, Project, Repository, error_line, photo_bytes

STAGE_COMMANDS = (("prepare.py",), ("train.py", "resnet18"), ("evaluate.py",), ("ensemble.py",), ("report.py",))


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited for {seconds} seconds"
        time.sleep(0.02)


def start(project: Project, *command: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *command], cwd=project.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("command", STAGE_COMMANDS, ids=" ".join)
def test_a_full_disk_is_one_line_and_costs_no_earlier_result(command: tuple[str, ...], repository: Repository) -> None:
    before = repository.results()
    largest_file = {"prepare.py": 50_000, "train.py": 1_000_000, "evaluate.py": 1_000}.get(command[0], 100)
    *warnings, line = repository.run(*command, largest_file=largest_file).stderr.splitlines()
    folder = {"prepare.py": "data/prepared", "train.py": "metrics, metrics/curves, models"}.get(command[0], "metrics")
    assert line.startswith(f"error: {folder}")
    assert line.endswith(": File too large; make room and run this again")
    assert [text.partition(":")[0] for text in warnings] == ["warning"] * (command[0] == "train.py")  # its checkpoint
    assert repository.results() == before  # and so nothing half written is left


def test_a_folder_that_cannot_be_written_to_is_named(repository: Repository) -> None:
    shutil.rmtree(repository.root / "metrics")
    (repository.root / "metrics").write_text("a file where a folder should be")
    before = repository.results()
    assert error_line(repository.run("evaluate.py")).startswith("metrics")
    assert repository.results() == before


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_prepare_at_once_and_leaves_nothing_half_written(
    number: int, status: int, project: Project
) -> None:
    photo = {label: photo_bytes(label, 1) for label in ("cat", "dog")}
    project.photos({f"{label}.{n}.jpg": photo[label] + str(n).encode() for label in photo for n in range(10_000)})
    project.split(train=18_000, validation=100, test=100)
    project.params["prepare"]["image_size"] = 128
    project.write_params()
    process = start(project, str(STAGES / "prepare.py"))
    wait_for(lambda: (project.root / "data/prepared/train.safetensors.partial").exists())
    process.send_signal(number)
    sent = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - sent < 2
    assert (process.returncode, errors) == (status, "")
    assert project.results() == {}


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_training_at_once(number: int, status: int, repository: Repository) -> None:
    repository.params["train"]["epochs"] = 1000
    repository.write_params()
    before = repository.results()
    process = start(repository, str(STAGES / "train.py"), "resnet18")
    assert "epochs: 1000" in process.stdout.readline()
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (status, "")
    after = repository.results()
    after.pop("models/resnet18.checkpoint", None)
    assert after == before


@pytest.mark.parametrize(("shell", "has_begun"), [("/bin/bash", False), ("/bin/sh", True)])
def test_a_stage_ends_when_dvc_is_gone(
    repository: Repository, shell: str, has_begun: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some shells stay between DVC and the stage, others hand their process over to it."""
    monkeypatch.setenv("SHELL", shell)
    repository.params["train"]["epochs"] = 1000
    repository.write_params()
    dvc = start(repository, "-m", "dvc", "repro", "--single-item", "train_resnet18")

    def stages() -> list[psutil.Process]:
        """Neither the shell before the stage nor DVC itself, which its child still looks like for a moment."""
        children = psutil.Process(dvc.pid).children(recursive=True)
        return [child for child in children if "stages/train.py" in child.cmdline()[:2]]

    wait_for((repository.root / "models/resnet18.checkpoint").exists if has_begun else stages)
    [stage] = stages()
    dvc.kill()
    try:
        wait_for(lambda: not stage.is_running() or stage.status() == psutil.STATUS_ZOMBIE, seconds=20)
    finally:
        if stage.is_running():
            stage.kill()
        dvc.communicate()


def test_of_two_repros_at_once_the_second_says_so_and_the_first_ends_well(repository: Repository) -> None:
    repository.params["train"]["epochs"] = 8
    repository.write_params()
    first = start(repository, "-m", "dvc", "repro", "train_resnet18")
    wait_for((repository.root / "models/resnet18.checkpoint").exists)
    second = repository.try_dvc("repro", "train_resnet18")
    _, errors = first.communicate()
    assert first.returncode == 0, errors
    assert second.returncode != 0
    assert "Traceback" not in second.stderr
    assert "is busy" in second.stderr
    assert "up to date" in repository.dvc("repro", "train_resnet18")


def test_a_stage_that_fails_under_dvc_costs_nothing(repository: Repository) -> None:
    """DVC clears a stage's results away before it runs, and has them back without running anything."""
    before = repository.results()
    earlier = (repository.root / "params.yaml").read_bytes()
    repository.photos({"cat.0.jpg": b"no photo"}, "data/raw/other.zip")
    repository.write_params()
    done = repository.try_dvc("repro")
    assert done.returncode != 0
    assert "error: data/raw/other.zip: 1 cats and 0 dogs found" in done.stderr
    (repository.root / "params.yaml").write_bytes(earlier)
    assert repository.stages_run_by("repro") == []
    assert repository.results() == before


def more_memory_than_there_is() -> None:
    torch.empty(2**50)


def more_memory_than_a_gpu_has() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 96.00 GiB.")


@pytest.mark.parametrize("main", [more_memory_than_there_is, more_memory_than_a_gpu_has])
def test_too_little_memory_is_one_line(main: Callable[[], None]) -> None:
    with pytest.raises(SystemExit) as exit_:
        run_stage(main)
    assert str(exit_.value).startswith("error: out of memory; close other programs, or lower prepare.image_size")
    assert "train.image_size" in str(exit_.value)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_other_runtime_errors_are_no_memory_errors() -> None:
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        run_stage(lambda: (_ for _ in ()).throw(RuntimeError("a mistake of ours")))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
