"""Decode many photos on all cores, for a process that uses the images itself."""

import mmap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from pipeline.photos.decoding import UnreadablePhoto, decode
from pipeline.photos.workers import in_batches, most_ahead, results_of

import numpy as np


@contextmanager
def decoded_images(
    reads: Sequence[Callable[[], bytes]], size: int, resize: str
) -> Iterator[Iterator[np.ndarray | UnreadablePhoto]]:
    """Yield an iterator over the decoded images, in order: uint8 [size, size, 3], as `decode` returns them.

    Each of `reads` returns the bytes of a photo. For a photo that cannot be read, the iterator has the UnreadablePhoto
    instead. Raises what `results_of` raises.
    """
    batches = in_batches(range(len(reads)))
    # Space for the batches in progress, used in a ring. Forks share anonymous memory, and it needs no cleanup.
    shape = (max(1, most_ahead() * max(map(len, batches), default=0)), size, size, 3)
    images = np.frombuffer(mmap.mmap(-1, np.prod(shape).item()), np.uint8).reshape(shape)

    def decode_batch(batch: Sequence[int]) -> list[UnreadablePhoto | None]:
        return [decode_to(images[number % len(images)], reads[number]) for number in batch]

    def decode_to(image: np.ndarray, read: Callable[[], bytes]) -> UnreadablePhoto | None:
        try:
            image[:] = decode(read(), size, resize)
        except UnreadablePhoto as reason:
            return reason
        except OSError as error:  # for example, deleted since it was found
            return UnreadablePhoto(error.strerror or str(error))
        return None

    with results_of(decode_batch, batches) as results:
        yield (
            reason or images[number % len(images)].copy()
            for batch, reasons in zip(batches, results, strict=True)
            for number, reason in zip(batch, reasons, strict=True)
        )
