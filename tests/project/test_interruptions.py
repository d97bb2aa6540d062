"""What goes wrong from outside while a stage runs: earlier results are not lost, and nothing half-written stays."""

import errno
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from pipeline.core.process import run_stage
from pipeline.networks.checkpoint import Checkpoint
from tests.support import forked
from tests.support.photos import kaggle_files
from tests.support.projects import REPOSITORY, Project, Repository, error_line, prepare_with_cores
from tests.support.waiting import wait_for

import psutil
import pytest
import torch

STAGE_COMMANDS = (("prepare.py",), ("train.py", "resnet18"), ("evaluate.py",), ("ensemble.py",), ("report.py",))
SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]  # with the exit status of a stage


Start = Callable[..., subprocess.Popen]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start `python *arguments` in a project; a process that the test leaves behind is killed."""
    started = []

    def start(project: Project, python: str, *arguments: str | Path) -> subprocess.Popen:
        command = [python, *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, cwd=project.root, text=True, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("command", STAGE_COMMANDS, ids=" ".join)
def test_stages_name_a_full_disk_in_one_line_and_keep_earlier_results(
    command: tuple[str, ...], repository: Repository
) -> None:
    repository.params["train"]["epochs"] = 2  # a checkpoint is saved in between
    repository.write_params()
    before = repository.results()
    largest_file = {"prepare.py": 50_000, "train.py": 1_000_000, "evaluate.py": 1_000}.get(command[0], 100)
    *warnings, line = repository.run(*command, largest_file=largest_file).stderr.splitlines()
    folders = {
        "prepare.py": "data/prepared",
        "train.py": "metrics/curves, metrics/steps, metrics/train, models/networks",
    }
    folder = folders.get(command[0], "metrics")
    assert line.startswith(f"error: {folder}")
    assert line.endswith(": File too large; free some disk space and run this again")
    assert [text.partition(":")[0] for text in warnings] == ["warning"] * (command[0] == "train.py")  # its checkpoint
    assert repository.results() == before  # so nothing half-written is left


@pytest.mark.slow
def test_evaluate_names_a_folder_that_it_cannot_write_to(repository: Repository) -> None:
    shutil.rmtree(repository.root / "metrics")
    (repository.root / "metrics").write_text("a file where a folder should be")
    before = repository.results()
    assert error_line(repository.run("evaluate.py")).startswith("metrics")
    assert repository.results() == before


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project that takes a while to prepare. Read only."""
    project = Project(tmp_path_factory.mktemp("large"))
    project.photos(kaggle_files(cats=300, dogs=300), "photos")
    project.split(train=560, validation=20, test=20)
    project.params["prepare"]["image_size"] = 512
    project.write_params()
    return project


def workers_of(process: subprocess.Popen, project: Project) -> list[psutil.Process]:
    """The processes that work for prepare, once all of them have started to decode."""
    wait_for((project.root / "data/prepared/train.safetensors.partial").exists)
    prepare = psutil.Process(process.pid)
    wait_for(lambda: len(prepare.children()) == 4)
    return prepare.children()


def cpu_s(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def cpu_s_of_children() -> float:
    """The CPU time of this process's children that have ended, and of theirs."""
    return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def have_ended(processes: list[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="threads do the work")
@pytest.mark.parametrize(("number", "status"), SIGNALS)
@pytest.mark.parametrize("to_all", [False, True])  # Ctrl-C goes to all processes of the terminal
def test_prepare_ends_at_once_on_a_signal_and_leaves_nothing_half_written(
    number: int, status: int, to_all: bool, large: Project, start: Start
) -> None:
    process = start(large, sys.executable, prepare_with_cores(large.root, 4))
    workers = workers_of(process, large)
    # Not seconds of the clock, because the computer may be busy.
    before = cpu_s_of_children() + cpu_s([psutil.Process(process.pid), *workers])
    for receiver in [*workers, process] if to_all else [process]:
        receiver.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert cpu_s_of_children() - before < 2
    assert (process.returncode, errors) == (status, "")
    assert have_ended(workers)
    assert large.results() == {}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="threads do the work")
def test_prepare_ends_with_one_line_if_a_process_of_it_is_killed(large: Project, start: Start) -> None:
    process = start(large, sys.executable, prepare_with_cores(large.root, 4))
    workers = workers_of(process, large)
    workers[1].kill()  # as the system does if memory runs out
    _, errors = process.communicate(timeout=60)
    expected = "error: a process that decodes photos was killed, probably because memory ran out; close other programs"
    assert (process.returncode, errors) == (1, f"{expected} and run this again\n")
    assert have_ended(workers)
    assert large.results() == {}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="threads do the work")
def test_processes_of_prepare_end_if_it_is_killed(large: Project, start: Start) -> None:
    process = start(large, sys.executable, prepare_with_cores(large.root, 4))
    workers = workers_of(process, large)
    process.kill()
    _, errors = process.communicate(timeout=60)
    assert errors == ""
    wait_for(lambda: have_ended(workers), seconds=10)
    shutil.rmtree(large.root / "data/prepared")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), SIGNALS)
def test_train_ends_at_once_on_a_signal(number: int, status: int, repository: Repository, start: Start) -> None:
    repository.params["train"]["epochs"] = 1000
    repository.write_params()
    before = repository.results()
    process = start(repository, forked.python(), REPOSITORY / "stages/train.py", "resnet18")
    assert "epochs: 1000" in process.stdout.readline()
    curve = repository.root / "metrics/curves/resnet18.csv"
    wait_for(lambda: curve.exists() and "kept" not in curve.read_text())  # it grows
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (status, "")
    after = repository.results()
    after.pop("models/networks/resnet18.checkpoint", None)
    assert after == before


@pytest.mark.slow
@pytest.mark.parametrize(("shell", "has_begun"), [("/bin/bash", False), ("/bin/sh", True)])
def test_train_ends_when_its_dvc_is_gone(
    repository: Repository, shell: str, has_begun: bool, monkeypatch: pytest.MonkeyPatch, start: Start
) -> None:
    """Some shells stay between DVC and the stage, others turn into the stage."""
    monkeypatch.setenv("SHELL", shell)
    repository.params["train"]["epochs"] = 1000
    repository.write_params()
    dvc = start(repository, sys.executable, "-m", "dvc", "repro", "--single-item", "train_resnet18")

    def stages() -> list[psutil.Process]:
        """Neither the shell before the stage nor DVC itself, which its child still looks like for a moment."""
        children = psutil.Process(dvc.pid).children(recursive=True)
        return [child for child in children if "stages/train.py" in child.cmdline()[:2]]

    wait_for((repository.root / "models/networks/resnet18.checkpoint").exists if has_begun else stages)
    [stage] = stages()
    dvc.kill()
    try:
        wait_for(lambda: not stage.is_running() or stage.status() == psutil.STATUS_ZOMBIE, seconds=20)
    finally:
        if stage.is_running():
            stage.kill()


@pytest.mark.slow
def test_dvc_repro_is_refused_while_another_one_trains_and_that_one_finishes(
    repository: Repository, start: Start
) -> None:
    repository.params["train"]["epochs"] = 5
    repository.write_params()
    first = start(repository, forked.python(), "-m", "dvc", "repro", "train_resnet18")
    wait_for((repository.root / "models/networks/resnet18.checkpoint").exists)
    second = repository.try_dvc("repro", "train_resnet18")
    _, errors = first.communicate()
    assert first.returncode == 0, errors
    assert second.returncode != 0
    assert "Traceback" not in second.stderr
    assert "is busy" in second.stderr
    assert "up to date" in repository.dvc("repro", "train_resnet18")


@pytest.mark.slow
def test_dvc_repro_loses_no_results_when_a_stage_fails(repository: Repository) -> None:
    """DVC deletes a stage's results before it runs, and can restore them without running anything."""
    before = repository.results()
    earlier = (repository.root / "params.yaml").read_bytes()
    repository.params["prepare"]["source"] = "data/raw/other.zip"
    repository.write_params()
    done = repository.try_dvc("repro")
    assert "error: data/raw/other.zip: no such file or folder; put the photos there" in done.stderr
    assert repository.results() == before  # not even deleted

    repository.photos({"cat.0.jpg": b"no photo"}, "data/raw/other.zip")
    repository.write_params()
    done = repository.try_dvc("repro")
    assert done.returncode != 0
    assert "error: data/raw/other.zip: found 1 cat, 0 dog" in done.stderr
    (repository.root / "params.yaml").write_bytes(earlier)
    assert repository.stages_run_by("repro") == ["track_code"]  # which looks for the photos
    assert repository.results() == before


ENDING = """
import atexit, sys, threading
sys.path.insert(0, sys.argv[1])
from pipeline.core.process import run_stage

class Large:
    def __del__(self):
        print("freed")

def main():
    atexit.register(print, "handler")
    threading.Thread(target=lambda: (threading.main_thread().join(), print("thread"))).start()
    print("x" * 100_000)

large = Large()
run_stage(main)
"""


def test_a_stage_ends_without_freeing_its_objects_but_after_its_threads_and_handlers() -> None:
    done = subprocess.run([sys.executable, "-c", ENDING, REPOSITORY], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()[1:], done.stderr) == (0, ["thread", "handler"], "")
    assert len(done.stdout.split()[0]) == 100_000


@pytest.mark.parametrize("output", ["print()", "print('x' * 1_000_000)", "print(flush=True)", "print(); sys.exit()"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_script_whose_output_nobody_reads_ends_without_a_message(output: str, unbuffered: str) -> None:
    """As in `python tools/predict.py photos | head`."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); from pipeline.core.process import run_stage\n"
    code += f"def main():\n    {output}\nrun_stage(main)"
    nobody, pipe = os.pipe()
    os.close(nobody)
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-c", code, REPOSITORY]
    done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(pipe)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_a_broken_pipe_that_is_not_the_output_is_an_error() -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); from pipeline.core.process import run_stage\n"
    code += "def main():\n    raise BrokenPipeError(32, 'Broken pipe')\nrun_stage(main)"
    done = subprocess.run([sys.executable, "-c", code, REPOSITORY], capture_output=True, text=True)
    assert error_line(done) == "I/O error: Broken pipe"


def more_memory_than_there_is() -> None:
    torch.empty(2**50)


def more_memory_than_a_gpu_has() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 96.00 GiB.")


def more_memory_than_cpp_has() -> None:
    raise RuntimeError("std::bad_alloc")


def a_killed_worker() -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(os._exit, 9).result()


@pytest.mark.parametrize(
    "main", [more_memory_than_there_is, more_memory_than_a_gpu_has, more_memory_than_cpp_has, a_killed_worker]
)
def test_run_stage_turns_too_little_memory_into_one_line(main: Callable[[], None]) -> None:
    with pytest.raises(SystemExit) as exit_:
        run_stage(main)
    assert str(exit_.value).startswith("error: out of memory; close other programs, or lower prepare.image_size")
    assert "train.image_size" in str(exit_.value)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), BlockingIOError(errno.EAGAIN, "no fork")])
def test_run_stage_turns_too_few_processes_into_one_line(error: Exception) -> None:
    with pytest.raises(SystemExit) as exit_:
        run_stage(lambda: (_ for _ in ()).throw(error))
    assert str(exit_.value) == (
        "error: too few threads or processes are allowed; close other programs, or raise `ulimit -u` or `ulimit -v`"
    )
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("import_", "said"),
    [
        ("bytearray(2**62)", "out of memory; close other programs"),
        ("raise ImportError('libx.so: failed to map segment from shared object')", "out of memory; close other"),
        ('raise RuntimeError("can\'t start new thread")', "too few threads or processes are allowed; "),
        ("import no_such_package", "package no_such_package is not installed for "),
    ],
)
def test_scripts_explain_what_goes_wrong_in_their_imports(import_: str, said: str, tmp_path: Path) -> None:
    """The errors come from where libraries are imported, before a stage starts."""
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = forked.run_new(["-c", f"import pipeline.core.process\n{import_}"], tmp_path, env, timeout=30)
    assert error_line(done).startswith(said)


def test_scripts_end_quietly_at_ctrl_c_in_their_imports(tmp_path: Path) -> None:
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    code = "import pipeline.core.process, os, signal\nos.kill(os.getpid(), signal.SIGINT)\nsignal.pause()"
    done = forked.run_new(["-c", code], tmp_path, env, timeout=30)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_scripts_print_names_that_the_terminal_cannot_show(tmp_path: Path) -> None:
    env = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": "ascii"}
    code = "import pipeline.core.process\nprint('20 cat\u00fc, 20 dog')"
    done = forked.run_new(["-c", code], tmp_path, env, timeout=30)
    assert (done.stdout, done.returncode) == ("20 cat\\xfc, 20 dog\n", 0)


@pytest.mark.slow
def test_what_a_killed_stage_leaves_changes_nothing(repository: Repository) -> None:
    before = repository.git("status", "--porcelain")
    for path in (
        "models/networks/resnet18.checkpoint",
        "metrics/report.html",
        "metrics/networks/resnet18.json",
        "params.yaml",
    ):
        (repository.root / f"{path}.partial").write_bytes(b"")
    assert repository.git("status", "--porcelain") == before
    assert repository.has_clean_status()


def test_a_training_run_deletes_the_half_written_checkpoint_of_a_killed_one(tmp_path: Path) -> None:
    leftover = tmp_path / "resnet18.checkpoint.partial"
    leftover.write_bytes(b"")
    assert (
        Checkpoint(tmp_path / "resnet18.checkpoint", {}, [], REPOSITORY / "stages/train.py", torch.device("cpu")).load()
        is None
    )
    assert not leftover.exists()


def test_run_stage_takes_other_runtime_errors_for_bugs() -> None:
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        run_stage(lambda: (_ for _ in ()).throw(RuntimeError("a mistake of ours")))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
