"""The same commit, params and photos give the same bytes: elsewhere, with other settings, and after being killed."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from pipeline.networks.checkpoint import Checkpoint

import pytest
import torch
from projects import Repository, error_line, stand_in_repository
from weight_files import write_weights

OTHER_SETTINGS = {"PYTHONHASHSEED": "4711", "TZ": "Asia/Kathmandu", "LC_ALL": "C", "LANG": "tr_TR.UTF-8"}
# For each kind of stage a line, and within how many seconds after it the stage is killed.
KILLED_AFTER = {
    "Running stage 'prepare'": 1,
    "resnet18: 24 photos": 0.5,
    "Running stage 'evaluate'": 3,
    "Running stage 'ensemble'": 1,
    "Running stage 'report'": 1,
}
MODEL, CHECKPOINT = Path("models/resnet18.safetensors"), Path("models/resnet18.checkpoint")


def start_repro(repository: Repository, *arguments: str) -> subprocess.Popen:
    """Start `dvc repro` in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", *arguments],
        cwd=repository.root,
        env=repository.environment | OTHER_SETTINGS,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def kill(process: subprocess.Popen) -> None:
    """`kill -9` the process and everything that it started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
def test_dvc_repro_of_a_clone_gives_the_same_lock_however_often_it_is_killed(
    finished: Repository, tmp_path: Path
) -> None:
    finished.git("clone", "--quiet", str(finished.root), str(tmp_path / "a clone"))
    clone = Repository(tmp_path / "a clone")
    shutil.copytree(finished.root / "data/raw", clone.root / "data/raw", dirs_exist_ok=True)
    (clone.root / "dvc.lock").unlink()
    for line_before, longest_s in KILLED_AFTER.items():
        process = start_repro(clone)
        assert any(line_before in line for line in process.stdout)
        time.sleep(random.uniform(0, longest_s))  # truly random: any moment must do
        assert process.poll() is None
        kill(process)
    clone.dvc("repro", env=OTHER_SETTINGS)
    assert (clone.root / "dvc.lock").read_bytes() == (finished.root / "dvc.lock").read_bytes()
    assert clone.git("status", "--porcelain") == ""  # the metrics are the same, too
    left_over = [path for suffix in ("partial", "checkpoint") for path in clone.root.rglob(f"*.{suffix}")]
    assert left_over == []


@pytest.mark.slow
def test_train_resumes_after_its_last_epoch_but_only_with_the_same_code(repository: Repository) -> None:
    # All that a training carries from epoch to epoch: momentum, a falling learning rate, BatchNorm's statistics.
    repository.params["train"] |= {"epochs": 3, "optimizer": "sgd", "lr_step_size": 1, "augment": "crop_and_flip"}
    repository.write_params()
    repository.dvc("repro", "train_resnet18")
    uninterrupted = (repository.root / MODEL).read_bytes()

    process = start_repro(repository, "--force", "--single-item", "train_resnet18")
    while not (repository.root / CHECKPOINT).exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    kill(process)
    checkpoint = (repository.root / CHECKPOINT).read_bytes()
    output = repository.dvc("repro", "--force", "--single-item", "train_resnet18")
    assert "resnet18: resuming after epoch" in output
    assert "epoch 1/3" not in output
    assert (repository.root / MODEL).read_bytes() == uninterrupted
    assert not (repository.root / CHECKPOINT).exists()

    (repository.root / CHECKPOINT).write_bytes(checkpoint)
    with (repository.root / "pipeline/networks/compute.py").open("a") as code:
        code.write("# a change\n")
    output = repository.dvc("repro", "train_resnet18")
    assert "training starts from scratch" in output
    assert "epoch 1/3" in output
    assert (repository.root / MODEL).read_bytes() == uninterrupted


def test_checkpoint_is_loaded_only_by_the_same_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, photos = tmp_path / "network.checkpoint", tmp_path / "photos"
    photos.write_bytes(b"photos")

    def checkpoint(lr: float = 0.001) -> Checkpoint:
        return Checkpoint(path, {"lr": lr}, [photos], torch.device("cpu"))

    assert checkpoint().load() is None
    state = {"weights": torch.arange(3.0), "curves": [{"epoch": 1, "loss": 0.5}]}
    checkpoint().save(state)
    loaded = checkpoint().load()
    assert torch.equal(loaded["weights"], state["weights"])
    assert loaded["curves"] == state["curves"]

    assert checkpoint(lr=0.002).load() is None
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    assert checkpoint().load() is None
    monkeypatch.undo()
    assert checkpoint().load()
    whole = path.read_bytes()
    for damaged in (whole[:100], b"", whole[:-200] + bytes([whole[-200] ^ 1]) + whole[-199:]):
        path.write_bytes(damaged)
        assert checkpoint().load() is None
    checkpoint().save(state)
    os.utime(photos, ns=(0, 0))
    assert checkpoint().load() is None


@pytest.mark.slow
def test_verify_rebuilds_everything_and_finds_it_unchanged(repository: Repository, tmp_path: Path) -> None:
    """Also if the files are links, as with `cache.type symlink`: their own names count, not those of their targets."""
    weights = write_weights(tmp_path, "resnet18")
    for path in (weights, repository.root / "data/raw/train.zip"):
        path.rename(tmp_path / f"content of {path.stem}")
        path.symlink_to(tmp_path / f"content of {path.stem}")
    repository.params["networks"]["resnet18"]["weights"] = str(weights)
    repository.write_params()
    repository.dvc("config", "cache.type", "symlink")
    repository.dvc("repro")
    repository.dvc("checkout", "--relink")
    assert (repository.root / MODEL).is_symlink()

    before = repository.git("status", "--porcelain", "--ignored")
    done = repository.run("verify.py")
    assert done.returncode == 0, done.stderr
    folders = [repository.root / name for name in ("data/prepared", "metrics", "models")]
    files = {path.relative_to(repository.root) for folder in folders for path in folder.rglob("*") if path.is_file()}
    assert {Path(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("same ")} == files
    assert f"All {len(files)} outputs are the same, byte for byte." in done.stdout
    assert repository.git("status", "--porcelain", "--ignored") == before


@pytest.mark.slow
def test_verify_names_what_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Results must be rebuilt even if a cache that all of a user's projects share has them.
    (tmp_path / "config").write_text(f"[cache]\n    dir = {tmp_path / 'shared cache'}\n")
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path))
    repository = stand_in_repository(tmp_path / "repository")  # its stages write something new each time
    repository.environment["DVC_GLOBAL_CONFIG_DIR"] = str(tmp_path)
    assert error_line(repository.run("verify.py")) == "the results are out of date; run `dvc repro` first"
    repository.dvc("repro")
    assert (tmp_path / "shared cache").exists()
    done = repository.run("verify.py")
    assert done.returncode == 1
    assert "different     models/resnet18.safetensors\n" in done.stdout
    assert done.stderr.endswith("error: 27 of 27 outputs differ; the rebuilt ones are in .verify/\n")

    (repository.root / "data/raw/train.zip").unlink()
    assert error_line(repository.run("verify.py")).startswith("data/raw/train.zip: no such file")
