"""The same commit, params and photos give the same bytes: elsewhere, with other settings, and after being killed."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.core.params import flatten
from pipeline.networks import checkpoint as checkpoint_module
from pipeline.networks.checkpoint import Checkpoint
from pipeline.runs.git import find_commit
from tests.support import forked
from tests.support.projects import REPOSITORY, Repository, error_line
from tests.support.waiting import wait_for
from tests.support.weight_files import write_weights

import pandas as pd
import pytest
import torch
import yaml

OTHER_SETTINGS = {"PYTHONHASHSEED": "4711", "TZ": "Asia/Kathmandu", "LC_ALL": "C", "LANG": "tr_TR.UTF-8"}
# Lines of `dvc repro` after which it is killed, and the stage with it.
KILLED_AFTER = (
    "Running stage 'prepare'",
    "resnet18: 24 photos",  # its training begins
    "resnet18 epoch 1/1",  # before its model is written
    "Running stage 'evaluate'",
    "Running stage 'ensemble'",
    "Running stage 'report'",
)
SCRIPT = REPOSITORY / "stages/train.py"
MODEL, CHECKPOINT = Path("models/networks/resnet18.safetensors"), Path("models/networks/resnet18.checkpoint")


def test_verify_says_what_to_do_if_git_does_not_trust_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(UserError, match=f"git config --global --add safe.directory {REPOSITORY}"):
        find_commit()


def start_repro(repository: Repository, *arguments: str) -> subprocess.Popen:
    """Start `dvc repro` in a process group of its own."""
    return subprocess.Popen(
        [forked.python(), "-m", "dvc", "repro", *arguments],
        cwd=repository.root,
        env=forked.on_path(repository.environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def kill(process: subprocess.Popen) -> None:
    """`kill -9` the process and everything that it started; wait until none of it can write its output any more."""
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
    for line_before in KILLED_AFTER:
        process = start_repro(clone)
        assert any(line_before in line for line in process.stdout)
        assert process.poll() is None
        kill(process)
    clone.dvc("repro")
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
    curves = [repository.root / f"metrics/{kind}/resnet18.csv" for kind in ("curves", "steps")]
    uninterrupted_curves = [path.read_bytes() for path in curves]

    process = start_repro(repository, "--force", "--single-item", "train_resnet18")
    wait_for(lambda: (repository.root / CHECKPOINT).exists() or process.poll() is not None)
    assert process.poll() is None, process.stdout.read()
    kill(process)
    checkpoint = (repository.root / CHECKPOINT).read_bytes()
    code = repository.root / "pipeline/networks/compute.py"
    code.write_text(f"# a comment\n{code.read_text()}")
    output = repository.dvc("repro", "--force", "--single-item", "train_resnet18")
    assert "resnet18: resuming after epoch" in output
    assert "epoch 1/3" not in output
    assert (repository.root / MODEL).read_bytes() == uninterrupted
    assert [path.read_bytes() for path in curves] == uninterrupted_curves
    assert not (repository.root / CHECKPOINT).exists()

    (repository.root / CHECKPOINT).write_bytes(checkpoint)
    code.write_text(f"{code.read_text()}CHANGED = 1\n")
    output = repository.dvc("repro", "train_resnet18")
    assert "training starts from scratch" in output
    assert "epoch 1/3" in output
    assert (repository.root / MODEL).read_bytes() == uninterrupted


def test_checkpoint_is_loaded_only_by_the_same_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, photos = tmp_path / "network.checkpoint", tmp_path / "photos"
    photos.write_bytes(b"photos")

    def checkpoint(lr: float = 0.001) -> Checkpoint:
        return Checkpoint(path, {"lr": lr}, [photos], SCRIPT, torch.device("cpu"))

    def save(state: dict) -> None:
        saving = checkpoint()
        saving.save(state)
        saving.wait()

    assert checkpoint().load() is None
    state = {"weights": torch.arange(3.0), "curves": [{"epoch": 1, "loss": 0.5}]}
    save(state)
    loaded = checkpoint().load()
    assert torch.equal(loaded["weights"], state["weights"])
    assert loaded["curves"] == state["curves"]

    assert checkpoint(lr=0.002).load() is None
    for module, name in ((torch, "get_num_threads"), (checkpoint_module, "describe")):
        monkeypatch.setattr(module, name, lambda *_: "another")
        assert checkpoint().load() is None
        monkeypatch.undo()
    assert checkpoint().load()
    whole = path.read_bytes()
    for damaged in (whole[:100], b"", whole[:-200] + bytes([whole[-200] ^ 1]) + whole[-199:]):
        path.write_bytes(damaged)
        assert checkpoint().load() is None
    save(state)
    os.utime(photos, ns=(0, 0))
    assert checkpoint().load() is None


@pytest.mark.slow
def test_verify_rebuilds_everything_and_finds_it_unchanged(repository: Repository, tmp_path: Path) -> None:
    """With other settings, in processes whose hashes of strings differ.

    Also if the files are links, as with `cache.type symlink`: their own names count, not those of their targets.
    """
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
    with forked.other_settings(OTHER_SETTINGS):
        done = repository.run("verify.py")
    assert done.returncode == 0, done.stderr
    folders = [repository.root / name for name in ("data/code", "data/prepared", "metrics", "models")]
    files = {path.relative_to(repository.root) for folder in folders for path in folder.rglob("*") if path.is_file()}
    assert {Path(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("same ")} == files
    assert f"All {len(files)} outputs are the same, byte for byte. Others can compare" in done.stdout
    after = repository.git("status", "--porcelain", "--ignored")
    assert after.replace("?? verify.json\n", "", 1) == before != after
    record = repository.read_json("verify.json")
    assert set(record["rebuilt"].values()) == {"same"}
    assert record["outputs"] == {
        path.as_posix(): hashlib.sha256((repository.root / path).read_bytes()).hexdigest() for path in files
    }
    table = pd.read_csv(repository.root / "metrics/predictions/ensemble.csv").query("split == 'test'")
    assert record["answers"]["ensemble"] == " ".join(
        map(str, (table["probability_dog"] > table["probability_cat"]).astype(int))
    )
    assert record["differing_answers"]["resnet18"] == {"differing": 0, "photos": 12}
    done = repository.run("verify.py", "--against", "verify.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(f"All {len(files)} outputs are the same, byte for byte.\n")


@pytest.mark.slow
def test_verify_names_what_differs(repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Results must be rebuilt even if a cache that all of a user's projects share has them.
    (tmp_path / "config").write_text(f"[cache]\n    dir = {repository.root / '.dvc/cache'}\n")
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path))
    repository.environment["DVC_GLOBAL_CONFIG_DIR"] = str(tmp_path)
    change_answers(repository, photos=2)
    done = repository.run("verify.py")
    assert done.returncode == 1
    assert "different     metrics/predictions/networks.csv\n" in done.stdout
    assert "same          models/networks/resnet18.safetensors\n" in done.stdout
    outputs = len(repository.read_json("verify.json")["outputs"])
    assert done.stderr.splitlines()[-1] == (
        f"error: 1 of {outputs} outputs differ, and resnet18 classifies 2 of 12 test photos differently; the "
        "rebuilt ones are in .verify/"
    )
    assert repository.read_json("verify.json")["rebuilt"]["metrics/predictions/networks.csv"] == "different"


def change_answers(repository: Repository, photos: int) -> None:
    """Let resnet18 answer this number of test photos differently, as a rebuild on another computer might."""
    path = repository.root / "metrics/predictions/networks.csv"
    table = pd.read_csv(path)
    rows = table.query("split == 'test' and network == 'resnet18'").index[:photos]
    table.loc[rows, ["logit_cat", "logit_dog"]] = table.loc[rows, ["logit_dog", "logit_cat"]].to_numpy()
    path.unlink()  # DVC protects it from being written to
    table.to_csv(path, index=False)
    repository.dvc("commit", "--force")


@pytest.mark.slow
def test_verify_needs_results_that_are_up_to_date_and_photos(stand_ins: Repository) -> None:
    repository = stand_ins
    (repository.root / "data/code/report.txt").unlink()
    assert error_line(repository.run("verify.py")) == "the results are out of date; run `dvc repro` first"
    repository.git("restore", ".")
    (repository.root / "data/raw/train.zip").unlink()
    assert error_line(repository.run("verify.py")).startswith("data/raw/train.zip: no such file")


@pytest.mark.slow
def test_verify_against_another_computers_record(repository: Repository, tmp_path: Path) -> None:
    """The other computer is this repository before its answers change."""
    record = tmp_path / "verify.json"
    (tmp_path / "describe.py").write_text(
        f"import sys\nsys.path.insert(0, {str(REPOSITORY)!r})\nimport json\n"
        "from pipeline.runs.fingerprint import describe\nprint(json.dumps(describe()))\n"
    )
    described = forked.run_new([str(tmp_path / "describe.py")], repository.root, repository.environment, timeout=60)
    record.write_text(described.stdout)
    done = repository.run("verify.py", "--against", str(record))
    assert done.stdout.endswith(" outputs are the same, byte for byte.\n")

    change_answers(repository, photos=3)
    repository.commit()
    done = repository.run("verify.py", "--against", str(record))
    assert "different     metrics/predictions/networks.csv\n" in done.stdout
    assert "\ncommit: " in f"\n{done.stdout}"
    assert "; resnet18 classifies 3 of 12 test photos differently.\n" in done.stdout
    assert "add --seed-run other-seed" in error_line(done)

    repository.git("tag", "here")
    for seed, photos, is_as_much in ((2, 3, True), (3, 1, False)):  # of resnet18's answers
        lock = yaml.safe_load((repository.root / "dvc.lock").read_text())
        for stage in lock["stages"].values():
            if "train" in stage.get("params", {}).get("params.yaml", {}):
                stage["params"]["params.yaml"]["train"]["seed"] = seed
        change_answers(repository, photos)
        new = yaml.safe_load((repository.root / "dvc.lock").read_text())["stages"]
        for name in ("evaluate", "ensemble", "report"):
            lock["stages"][name] = new[name]
        (repository.root / "dvc.lock").write_text(yaml.safe_dump(lock))
        repository.commit()
        repository.git("tag", f"seed-{seed}")
        repository.git("reset", "--quiet", "--hard", "here")
        repository.dvc("checkout")
        done = repository.run("verify.py", "--against", str(record), "--seed-run", f"seed-{seed}")
        assert f"Two seeds differ in: resnet18 {photos}, resnet34 0, ensemble 0.\n" in done.stdout
        if is_as_much:
            assert done.returncode == 0, done.stderr
            assert done.stdout.endswith("That is no more than two seeds differ by.\n")
        else:
            assert error_line(done) == "resnet18: more answers differ than between two seeds"
    assert error_line(repository.run("verify.py", "--against", str(record), "--seed-run", "here")) == (
        "--seed-run here: expected a run that differs only in train.seed; it differs in nothing"
    )


@pytest.mark.slow
def test_verify_refuses_a_record_of_other_params_or_photos(finished: Repository, tmp_path: Path) -> None:
    record = tmp_path / "verify.json"
    assert error_line(finished.run("verify.py", "--against", "no.json")) == (
        "no.json does not exist; expected the verify.json that `make verify` writes"
    )
    record.write_text("{}")
    assert (
        error_line(finished.run("verify.py", "--against", str(record))) == f"{record} was not written by `make verify`"
    )
    params = dict(flatten(yaml.safe_load((finished.root / "params.yaml").read_text())))
    empty = {"commit": "", "made_with": {}, "outputs": {}, "answers": {}}
    record.write_text(json.dumps(empty | {"params": params | {"lr": 0.1, "device": "cuda"}}))
    assert error_line(finished.run("verify.py", "--against", str(record))) == (
        f"{record} is for different params: lr is 0.001 here, 0.1 there"
    )
    record.write_text(
        json.dumps(empty | {"params": params | {"prepare.source": "train.zip", "prepare.labels": "labels.csv"}})
    )
    assert error_line(finished.run("verify.py", "--against", str(record))) == (
        f"{record} is for different photos: data/prepared/split.csv differs; start from the same archive and "
        "corrections"
    )
