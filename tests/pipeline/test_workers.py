"""Processes that work on photos: results, failures, what they may use, and what they leave behind."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from pipeline.core import cores
from pipeline.core.errors import UserError
from pipeline.photos import workers
from pipeline.photos.decoding import UnreadablePhoto, decode
from pipeline.photos.decoding_many import decoded_images
from pipeline.photos.source import PhotoSource
from pipeline.photos.workers import in_batches, results_of
from tests.support.containers import CONTAINERS
from tests.support.photos import kaggle_files

import numpy as np
import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="threads do the work")


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Four cores, of which even a few photos make use; no process may be left."""
    monkeypatch.setattr(workers, "usable_cores", lambda: 4)
    monkeypatch.setattr(workers, "FEWEST_PHOTOS", 2)
    yield
    assert multiprocessing.active_children() == []


def process_of(batch: list[int]) -> tuple[int, list[int]]:
    return os.getpid(), list(batch)


def test_results_come_in_order_from_all_processes() -> None:
    batches = in_batches(range(1000))
    assert {len(batch) for batch in batches} == {8, 16}
    with results_of(process_of, batches) as results:
        processes, found = zip(*results, strict=True)
    assert [number for batch in found for number in batch] == list(range(1000))
    assert 2 <= len(set(processes)) <= 4
    assert os.getpid() not in processes


def test_threads_do_the_work_outside_of_the_main_thread() -> None:
    """Only the main thread may handle signals."""
    found = []

    def ask() -> None:
        with results_of(process_of, in_batches(range(100))) as results:
            found.extend(results)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert {process for process, _ in found} == {os.getpid()}
    assert [number for _, batch in found for number in batch] == list(range(100))


@pytest.mark.parametrize("write", CONTAINERS, ids=lambda write: write.__name__)
def test_processes_read_every_kind_of_container_at_the_same_time(write: Callable, tmp_path: Path) -> None:
    """An open file has one position, which a process and its forks share."""
    with PhotoSource(write(tmp_path, kaggle_files(cats=100, dogs=100))) as source:
        photos = source.photos()
        expected = [source.read(photo) for photo in photos]
        with results_of(lambda batch: [source.read(photo) for photo in batch], in_batches(photos)) as results:
            assert [content for batch in results for content in batch] == expected


def test_images_are_those_of_decode_and_unreadable_photos_their_reasons(tmp_path: Path) -> None:
    contents = [*kaggle_files(cats=60, dogs=60).values()]
    contents[7], contents[100] = b"no photo", contents[100][:200]
    reads: list[Callable[[], bytes]] = [partial(bytes, content) for content in contents]
    reads[50] = (tmp_path / "deleted").read_bytes
    with decoded_images(reads, 32, "stretch") as images:
        found = list(images)
    for number, image in enumerate(found):
        if number in (7, 50, 100):
            assert isinstance(image, UnreadablePhoto)
        else:
            assert np.array_equal(image, decode(contents[number], 32, "stretch"))
    assert str(found[50]) == "No such file or directory"


def raise_on_50(batch: list[int]) -> None:
    if 50 in batch:
        raise OSError(28, "No space left on device")


def be_killed_on_50(batch: list[int]) -> None:
    if 50 in batch:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("work", "error", "message"),
    [
        (raise_on_50, OSError, "No space left on device"),
        (be_killed_on_50, UserError, "a process that decodes photos was killed, probably because memory ran out"),
    ],
)
def test_what_ends_one_process_ends_them_all(work: Callable, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message), results_of(work, in_batches(range(1000))) as results:
        list(results)


@pytest.mark.parametrize("when", ["at_once", "later"])
def test_a_signal_is_not_lost_and_ends_all_processes(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a handler raises in the functions that Python calls around a fork would only be printed."""
    if when == "at_once":
        fork = os.fork
        monkeypatch.setattr(os, "fork", lambda: signal.raise_signal(signal.SIGINT) or fork())
    with pytest.raises(KeyboardInterrupt), results_of(process_of, in_batches(range(1000))) as results:
        next(results)
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("own", "limits", "expected"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),  # in a container, version 2
        ("0::/slice/unit\n", {"slice/unit/cpu.max": "max 100000\n", "slice/cpu.max": "300000 100000\n"}, 3),
        ("0::/slice/unit\n", {"slice/unit/cpu.max": "max 100000\n"}, 8),
        (  # version 1: the path is the host's
            "5:memory:/docker/1\n4:cpu,cpuacct:/docker/1\n0::/\n",
            {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            1,
        ),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        (None, {}, 8),  # another system than Linux
    ],
)
def test_usable_cores_are_those_that_affinity_and_container_allow(
    own: str | None, limits: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "process_cpu_count", lambda: 8, raising=False)
    monkeypatch.setattr(cores, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(cores, "CGROUPS", tmp_path)
    if own is not None:
        (tmp_path / "own").write_text(own)
    for name, text in limits.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cores.usable_cores() == expected


def test_usable_cores_are_those_that_this_process_may_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "OWN_CGROUPS", Path("/nowhere"))
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, [min(allowed)])
        assert cores.usable_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
