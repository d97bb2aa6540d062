"""Open packed splits and make batches from them."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.core.packed import read_packed
from pipeline.networks.devices import free_memory
from pipeline.networks.normalisation import IMAGENET, Normalisation
from pipeline.networks.reading import copy_in_background, read_ahead

import torch
from torch import Tensor

MAX_SHARE_OF_FREE_MEMORY = 1 / 3  # for one split; the rest is for the other one, the network and its activations

Augment = Callable[[Tensor], Tensor]  # from uint8 images [N, 3, size, size] to others, all of one size


@dataclass(frozen=True)
class PackedSplit:
    """`pixels` uint8 [N, size, size, 3] and `labels` int64 [N]; `description` as written by `prepare`.

    The labels, and the images that are made from the pixels, are on `device`. The pixels are there too unless they are
    too large (`is_large`). On the CPU they are memory-mapped: opening takes no time, and a batch reads only its own
    photos. On a CUDA GPU, `content` is a future for the copied pixels; their first use waits for it. Rows are given as
    int64 tensors on the pixels' device. Images are normalised with `normalise`: see `normalised`.
    """

    content: Tensor | Future[Tensor]
    labels: Tensor
    description: dict
    is_large: bool = False
    normalise: Normalisation = IMAGENET

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def pixels(self) -> Tensor:
        return self.content.result() if isinstance(self.content, Future) else self.content

    @property
    def device(self) -> torch.device:
        return self.labels.device

    def wait(self) -> None:
        """Wait until the pixels are on the GPU, if they are being copied there."""
        if isinstance(self.content, Future):
            self.content.result()

    def images(self, rows: Tensor) -> Tensor:
        """The photos at `rows`, normalised: float32 [len(rows), 3, size, size] in channels_last format."""
        return next(self.batches([rows]))

    def batches(self, rows_of: Sequence[Tensor], augment: Augment | None = None) -> Iterator[Tensor]:
        """As `images`, a batch for each of `rows_of`. Large splits are read ahead, with the same results."""
        if self.is_large:
            read = read_ahead(self.pixels, rows_of, self.device)
        else:
            read = (self.pixels[rows] for rows in rows_of)
        for pixels in read:
            images = pixels.permute(0, 3, 1, 2)
            yield self.normalise(augment(images) if augment else images)

    def part(self, rows: slice | Tensor) -> "PackedSplit":
        """The photos in `rows`; a slice does not copy them."""
        return replace(self, content=self.pixels[rows], labels=self.labels[rows])

    def normalised(self, normalise: Normalisation) -> "PackedSplit":
        """The same photos, with images as a network expects them."""
        return replace(self, normalise=normalise)

    def photos_by_class(self) -> dict[str, int]:
        """The number of photos of each class."""
        classes = self.description["classes"]
        return dict(zip(classes, torch.bincount(self.labels.cpu(), minlength=len(classes)).tolist(), strict=True))

    def balanced_weights(self) -> Tensor:
        """The weight of each class's photos with which all classes count equally, float32 [classes], on the device.

        It is N / (classes * photos of the class), so the mean weight of the photos is 1.
        """
        photos = torch.tensor([*self.photos_by_class().values()])
        return (len(self) / (len(photos) * photos.clamp(min=1))).to(self.device)

    def sample(self, count: int) -> "PackedSplit":
        """The first `count` photos, and the first one of each class that is not among them."""
        labels = self.labels.cpu()
        rows = [torch.arange(min(count, len(labels)))]
        for label in range(len(self.description["classes"])):
            found = (labels == label).nonzero()
            if len(found) and found[0, 0] >= count:
                rows.append(found[0])
        return self.part(torch.cat(rows).to(self.pixels.device)) if len(rows) > 1 else self.part(slice(count))


def open_split(path: Path, device: torch.device) -> PackedSplit:
    """Open a split written by `prepare`, and start to copy it to a GPU if it fits there.

    Raises UserError if it cannot be read.
    """
    packed = read_packed(path)
    with warnings.catch_warnings(action="ignore"):  # about the pixels being read-only: they must not be written to
        pixels = torch.from_numpy(packed.pixels)
    labels = torch.from_numpy(packed.labels).long().to(device)
    is_large = pixels.nbytes > MAX_SHARE_OF_FREE_MEMORY * free_memory(device)
    if device.type == "cuda" and not is_large:
        return PackedSplit(copy_in_background(pixels, device), labels, packed.description)
    return PackedSplit(pixels if is_large else pixels.to(device), labels, packed.description, is_large)
