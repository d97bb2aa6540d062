"""Work on many photos in several processes. Threads do not scale, because decoding needs Python's lock too often."""

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from pipeline.core.cores import usable_cores
from pipeline.core.errors import UserError

LARGEST_BATCH = 16  # photos; handing over a batch costs time, but a signal has to wait for the batches of threads
BATCHES_PER_CORE = 4  # at least, so that all cores finish at about the same time
AHEAD_PER_CORE = 3  # batches in progress, so that no core waits while a result is used
FEWEST_PHOTOS = 64  # for fewer, starting processes takes longer than it saves
SIGNALS = (signal.SIGINT, signal.SIGTERM)

Item = TypeVar("Item")
Batch = TypeVar("Batch", bound=Sequence)
Result = TypeVar("Result")

_work_on: Callable[[int], object]  # in a worker process: does the work on the batch with this number


def in_batches(items: Sequence[Item]) -> list[Sequence[Item]]:
    """Divide items into batches of the same size, 1 to LARGEST_BATCH (the last one may be smaller)."""
    size = min(LARGEST_BATCH, max(1, len(items) // (BATCHES_PER_CORE * usable_cores())))
    return [items[start : start + size] for start in range(0, len(items), size)]


def most_ahead() -> int:
    """The number of batches that `results_of` works on at most, including the one whose result is being used."""
    return AHEAD_PER_CORE * usable_cores()


@contextmanager
def results_of(work: Callable[[Batch], Result], batches: Sequence[Batch]) -> Iterator[Iterator[Result]]:
    """Yield an iterator over the results of `work` on each batch, in order, computed on all usable cores.

    The work is done in forks of this process, which share its open files but not later changes to its memory; results
    are pickled. Threads do the work if there are few photos, and outside the main thread, which alone can handle
    signals. No process remains when the `with` block ends, even by an error. Raises what `work` raises, and UserError
    if a process is killed.
    """
    # Forks start quickly and share the open source and unpacked archives, which spawned processes would have to open
    # again. They need no lock that another thread may hold at the fork. On macOS, system libraries do not survive one.
    cores = min(usable_cores(), len(batches))
    few = sum(map(len, batches)) < FEWEST_PHOTOS
    earlier_children = multiprocessing.active_children()
    is_main = threading.current_thread() is threading.main_thread()
    if few or cores == 1 or not is_main or sys.platform != "linux":
        pool = ThreadPoolExecutor(max(1, cores))
        submit = lambda number: pool.submit(work, batches[number])  # noqa: E731
    else:
        context = multiprocessing.get_context("fork")
        pool = ProcessPoolExecutor(cores, context, _become_worker, (work, batches))
        submit = lambda number: pool.submit(_call, number)  # noqa: E731
    try:
        if isinstance(pool, ProcessPoolExecutor):
            with _signals_held():
                pool.submit(int)  # starts all processes
        yield _in_order(submit, len(batches))
    except BrokenProcessPool:
        raise UserError(
            "a process that decodes photos was killed, probably because memory ran out; close other programs and run "
            "this again"
        ) from None
    except BaseException:
        for process in multiprocessing.active_children():
            if process not in earlier_children:
                process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(submit: Callable[[int], Future], count: int) -> Iterator:
    """Yield the results in order. Memory that a result refers to may be reused once the next one is requested."""
    ahead = most_ahead()
    running: deque[Future] = deque()
    for number in range(count):
        if len(running) == ahead:
            yield running.popleft().result()
        running.append(submit(number))
    while running:
        yield running.popleft().result()


@contextmanager
def _signals_held() -> Iterator[None]:
    """Delay signals: an exception that a handler raises during a fork is lost, and forks inherit the handlers."""
    arrived: list[int] = []
    handlers = {number: signal.signal(number, lambda number, _: arrived.append(number)) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for number in arrived:
        signal.raise_signal(number)


def _become_worker(work: Callable[[Batch], object], batches: Sequence[Batch]) -> None:
    """Set up a fork, which leaves Ctrl-C to its parent and exits when its parent does."""
    global _work_on
    _work_on = lambda number: work(batches[number])  # noqa: E731
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _call(number: int) -> object:
    return _work_on(number)


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(1)
