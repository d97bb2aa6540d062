"""Read batches ahead, for splits that are too large for the device's memory."""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor


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
