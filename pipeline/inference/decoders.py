"""Decode photos for a server, in other processes: threads do not scale, and a damaged photo may crash a decoder."""

import io
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from pipeline.core.cores import usable_cores
from pipeline.photos.decoding import decode

import numpy as np
from PIL import Image

LARGE_PHOTO = 25_000_000  # pixels; larger ones are decoded one at a time, because each may take gigabytes of memory

_one_large: Any  # in a process that decodes: the lock that they share


class Decoders:
    """A process for each usable core, which decode photos; on macOS, whose libraries do not survive a fork, threads.

    If a process is killed, others replace them all.
    """

    def __init__(self) -> None:
        self._pool = _start_pool()

    def decode(self, content: bytes, size: int, resize: str) -> Future[np.ndarray]:
        """Start to decode a photo as `pipeline.photos.decoding.decode` does.

        The result raises UnreadablePhoto, or BrokenProcessPool if a process was killed.
        """
        try:
            return self._pool.submit(_decode, content, size, resize)
        except BrokenProcessPool:
            self._pool = _start_pool()
            return self._pool.submit(_decode, content, size, resize)

    def close(self) -> None:
        """Wait until all photos are decoded, and end the processes."""
        self._pool.shutdown()


def _start_pool() -> Executor:
    if sys.platform != "linux":
        return ThreadPoolExecutor(usable_cores(), "decode", _share, (threading.Lock(),))
    context, earlier = multiprocessing.get_context("fork"), multiprocessing.active_children()
    pool = ProcessPoolExecutor(usable_cores(), context, _become_decoder, (context.Lock(),))
    pool.submit(int)  # starts all processes
    started = [process for process in multiprocessing.active_children() if process not in earlier]
    threading.Thread(target=_end_together, args=(started,), daemon=True).start()
    return pool


def _end_together(processes: list[Any]) -> None:
    """Once one of the processes has ended, kill the others: the pool is useless then, and they ignore its SIGTERM."""
    multiprocessing.connection.wait([process.sentinel for process in processes])
    for process in processes:
        process.kill()


def _share(one_large: Any) -> None:
    global _one_large
    _one_large = one_large


def _become_decoder(one_large: Any) -> None:
    """Set up a fork: it ends when its parent does, but not by a signal to both, so that the parent can finish its work.

    It closes the sockets that it inherits: a client would otherwise not notice that the server has closed one.
    """
    _share(one_large)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    for path in Path("/proc/self/fd").iterdir():
        if path.is_socket():
            os.close(int(path.name))
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(1)


def _decode(content: bytes, size: int, resize: str) -> np.ndarray:
    with _one_large if _count_pixels(content) > LARGE_PHOTO else nullcontext():
        return decode(content, size, resize)


def _count_pixels(content: bytes) -> int:
    """How many pixels a photo has, by its header; 0 if it cannot be read, or has more than Pillow decodes."""
    with suppress(Exception), Image.open(io.BytesIO(content)) as image:
        return image.width * image.height
    return 0
