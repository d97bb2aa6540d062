"""Order the photos of each split, decode them, and write them to packed splits."""

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from pipeline.core.packed import packed_writer
from pipeline.photos.decoding import UnreadablePhoto, decode
from pipeline.photos.source import Photo, PhotoSource
from pipeline.photos.workers import in_batches, results_of

from tqdm import tqdm


class SplitOrder:
    """Orders a split's photos so that every prefix has the classes in the proportion of `quotas`.

    `quotas` are numbers of photos per class; without them, photos keep the order in which they are added. `photos` are
    those that have a row so far.
    """

    def __init__(self, split: str, quotas: Sequence[int] | None) -> None:
        self.photos: list[Photo] = []
        self._split = split
        self._has_quotas = quotas is not None
        self._quotas = quotas or ()
        self._placed: Counter[int] = Counter()
        self._waiting: dict[int, deque[Photo]] = {label: deque() for label, quota in enumerate(self._quotas) if quota}

    def add(self, photo: Photo) -> None:
        """Give a photo the next row; with quotas, it waits until the other classes have caught up."""
        if not self._has_quotas:
            self._place(photo)
            return
        self._waiting[photo.class_index].append(photo)
        arrived = min(self._progress(label, len(queue)) for label, queue in self._waiting.items())
        while True:
            label = min(self._waiting, key=lambda label: self._progress(label, 1))
            if self._progress(label, 1) > arrived:
                return
            self._place(self._waiting[label].popleft())

    def waiting(self) -> list[Photo]:
        """The photos that still wait for photos of other classes."""
        return [photo for queue in self._waiting.values() for photo in queue]

    def add_waiting(self) -> None:
        """Give rows to the photos that still wait."""
        for queue in self._waiting.values():
            while queue:
                self._place(queue.popleft())

    def _place(self, photo: Photo) -> None:
        photo.split, photo.row = self._split, len(self.photos)
        self.photos.append(photo)
        self._placed[photo.class_index] += 1

    def _progress(self, label: int, more: int) -> float:
        """The share of its quota that a class has if `more` of its photos are placed."""
        return (self._placed[label] + more) / self._quotas[label]


def write_splits(
    files: Mapping[str, Path], photos: Mapping[str, Sequence[Photo]], description: dict, source: PhotoSource
) -> bool:
    """Write the packed file of each split, with its photos in the order of their rows.

    `description` is stored in each; its `image_size` and `resize` say how photos are decoded. Returns whether every
    photo could be decoded. If not, the unreadable ones are excluded, and the files must be written again.
    """
    size, resize = description["image_size"], description["resize"]
    with ExitStack() as stack:
        write_pixels = {
            split: stack.enter_context(packed_writer(path, [photo.class_index for photo in photos[split]], description))
            for split, path in files.items()
        }

        def write_batch(batch: Sequence[Photo]) -> dict[int, str]:
            unreadable = {}
            for place, photo in enumerate(batch):
                try:
                    pixels = decode(source.read(photo), size, resize)
                except UnreadablePhoto as reason:
                    unreadable[place] = str(reason)
                else:
                    write_pixels[photo.split](photo.row, pixels)
            return unreadable

        everything = [photo for split in files for photo in photos[split]]
        batches = in_batches(everything)
        is_complete = True
        with (
            results_of(write_batch, batches) as results,
            tqdm(total=len(everything), desc="decoding", unit=" photos", disable=None) as bar,
        ):
            for batch, unreadable in zip(batches, results, strict=True):
                for place, reason in unreadable.items():
                    batch[place].readable, batch[place].excluded = False, reason
                    is_complete = False
                bar.update(len(batch))
    return is_complete
