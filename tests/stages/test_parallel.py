"""One training in several processes, and several stages at the same time."""

import subprocess
import sys
from pathlib import Path

from pipeline.core.all_params import Params
from pipeline.core.errors import UserError
from pipeline.core.read_params import read_params
from pipeline.networks.distributed import Processes
from pipeline.networks.training import check_batch_size
from tests.support import forked
from tests.support.projects import REPOSITORY, STAND_IN, Repository, stand_in_repository

import pandas as pd
import psutil
import pytest
import torch
from safetensors.torch import load_file

LAUNCHER = ("torchrun", "--standalone", "--nproc-per-node", "2")
MODEL = "models/networks/resnet18.safetensors"


def start_two(repository: Repository, python: str) -> subprocess.Popen:
    """Start a training of resnet18 in two processes, by hand."""
    return subprocess.Popen(
        [python, "-m", "torch.distributed.run", *LAUNCHER[1:], REPOSITORY / "stages/train.py", "resnet18"],
        cwd=repository.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_processes_shard_a_batch_completely() -> None:
    batch = torch.arange(12)
    shards = [Processes(rank, 3).shard(batch) for rank in range(3)]
    assert [len(shard) for shard in shards] == [4, 4, 4]
    assert torch.equal(torch.cat(shards).sort().values, batch)


def test_train_refuses_a_batch_that_cannot_be_shared_equally() -> None:
    params = read_params(Params, REPOSITORY / "params.yaml").train  # batches of 64
    check_batch_size(params, photos=64, processes=2)
    with pytest.raises(UserError, match=r"train\.batch_size is 64; expected a multiple of 3"):
        check_batch_size(params, photos=64, processes=3)


@pytest.mark.slow
def test_train_in_two_processes_takes_the_same_steps_as_in_one(repository: Repository) -> None:
    """Without dropout and with the backbone's statistics frozen, a step depends on nothing but the whole batch."""
    repository.params["train"] |= {"layers": "head", "dropout": 0, "optimizer": "sgd"}
    repository.succeed("train.py", "resnet18")
    one, scores = load_file(repository.root / MODEL), repository.read_json("metrics/train/resnet18.json")
    steps = pd.read_csv(repository.root / "metrics/steps/resnet18.csv")

    process = start_two(repository, forked.python())
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert output.count("resnet18 epoch 1/1") == 1  # only the first process prints
    two = load_file(repository.root / MODEL)
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(two[key], one[key])
    assert repository.read_json("metrics/train/resnet18.json") == pytest.approx(scores, abs=1e-5)
    pd.testing.assert_frame_equal(pd.read_csv(repository.root / "metrics/steps/resnet18.csv"), steps, atol=1e-5)


@pytest.mark.slow
def test_train_in_two_processes_gives_the_same_bytes_every_time(repository: Repository) -> None:
    repository.params["train"]["launcher"] = " ".join(LAUNCHER)
    repository.write_params()
    output = repository.dvc("repro", "--single-item", "train_resnet18")
    assert f"{' '.join(LAUNCHER)} stages/train.py resnet18" in output
    assert "2 processes" in output
    by_dvc = repository.results()

    process = start_two(repository, forked.python())
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert repository.results() == by_dvc


@pytest.mark.slow
def test_train_ends_when_one_of_its_processes_dies(repository: Repository) -> None:
    before = repository.results()
    repository.params["train"]["epochs"] = 1000
    repository.write_params()
    launcher = start_two(repository, sys.executable)
    assert "2 processes" in launcher.stdout.readline()
    workers = psutil.Process(launcher.pid).children()
    workers[-1].kill()
    launcher.communicate(timeout=60)
    assert launcher.returncode != 0
    assert not any(worker.is_running() for worker in workers)
    results = repository.results()
    results.pop("models/networks/resnet18.checkpoint", None)
    assert results == before


@pytest.mark.slow
def test_dvc_repro_runs_two_single_stages_at_the_same_time(tmp_path: Path) -> None:
    repository = stand_in_repository(tmp_path / "repository")
    meeting = """
import time
from pathlib import Path
Path(f"here-{sys.argv[1]}").touch()
end = time.monotonic() + 30
while len(list(Path().glob("here-*"))) < 2:
    assert time.monotonic() < end, "the other stage did not start meanwhile"
    time.sleep(0.02)
"""
    (repository.root / "stages/train.py").write_text(f"import sys\n{meeting}{STAND_IN}")
    repository.dvc("repro", "prepare")
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "dvc", "repro", "--single-item", stage],
            cwd=repository.root,
            env=repository.environment | {"CUDA_VISIBLE_DEVICES": gpu},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for stage, gpu in (("train_resnet18", "0"), ("train_resnet34", "1"))
    ]
    for process in both:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
    assert repository.stages_run_by("repro") == ["reject", "evaluate", "ensemble", "report"]
