"""Bring photos to a device while it computes: a whole split, or batches of one that is too large for its memory."""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

COPIED_AT_ONCE = 2**26  # bytes of page-locked memory, which a GPU needs to copy in the background


def copy_in_background(pixels: Tensor, device: torch.device) -> Future[Tensor]:
    """Start to copy `pixels`, usually memory-mapped, to a CUDA GPU, in a separate thread and stream.

    The future has a result once the whole copy is complete, so any stream can use it. Reading the file and copying to
    page-locked memory take most of the time; both release Python's lock.
    """
    copied = torch.empty(pixels.shape, dtype=pixels.dtype, device=device)
    stream = torch.Stream(device)
    stream.wait_stream(torch.accelerator.current_stream(device))  # which may still use the memory of `copied`
    copied.record_stream(stream)  # so that its memory is not reused before the copy ends
    rows = max(1, COPIED_AT_ONCE // pixels[0].nbytes)

    def copy() -> Tensor:
        with stream:
            for part, target in zip(pixels.split(rows), copied.split(rows), strict=True):
                target.copy_(part.pin_memory(), non_blocking=True)
        stream.synchronize()
        return copied

    with_one_thread = ThreadPoolExecutor(1)
    copying = with_one_thread.submit(copy)
    with_one_thread.shutdown(wait=False)
    return copying


def read_ahead(pixels: Tensor, batches: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Yield the rows of `pixels` that each of `batches` names, on `device`.

    `pixels` is on the CPU, usually mapped from a file. While one batch is in use, a thread reads the next one, and
    copies it to the device on a stream of its own.
    """
    stream = None if device.type == "cpu" else torch.Stream(device)

    def read(rows: Tensor) -> tuple[Tensor, torch.Event | None]:
        batch = pixels[rows]
        if stream is None:
            return batch, None
        with stream:
            return batch.pin_memory().to(device, non_blocking=True), stream.record_event()

    def hand_over(reading: Future) -> Tensor:
        batch, copied = reading.result()
        if copied:
            current = torch.accelerator.current_stream(device)
            current.wait_event(copied)
            batch.record_stream(current)  # so that its memory is not reused before `current` has used it
        return batch

    with ThreadPoolExecutor(1) as reader:
        reading = None
        for rows in batches:
            before, reading = reading, reader.submit(read, rows)
            if before:
                yield hand_over(before)
        if reading:
            yield hand_over(reading)
