"""Read the photos of a fold from the packed splits, without decoding them again."""

from pipeline.core.packed import read_packed
from pipeline.core.paths import packed_split
from pipeline.folds.assigning import HELD_OUT, POOL
from pipeline.networks.dataset import MAX_SHARE_OF_FREE_MEMORY, PackedSplit
from pipeline.networks.devices import free_memory

import numpy as np
import pandas as pd
import torch


def read_parts(photos: pd.DataFrame, parts: pd.Series, device: torch.device) -> dict[str, PackedSplit]:
    """The photos for training, for choosing and those held out, in the order of `photos`, in memory.

    Raises UserError if a split cannot be read.
    """
    splits = {name: read_packed(packed_split(name)) for name in POOL}
    description = splits["train"].description
    size = description["image_size"]
    read = {}
    for part in ("train", "validation", HELD_OUT):
        chosen = photos[parts == part]
        pixels, labels = np.empty((len(chosen), size, size, 3), np.uint8), np.empty(len(chosen), np.int64)
        for name, packed in splits.items():
            is_here = (chosen["split"] == name).to_numpy()
            rows = chosen.loc[is_here, "row"].to_numpy()
            pixels[is_here], labels[is_here] = packed.pixels[rows], packed.labels[rows]
        read[part] = _on_device(torch.from_numpy(pixels), torch.from_numpy(labels), description, device)
    return read


def _on_device(pixels: torch.Tensor, labels: torch.Tensor, description: dict, device: torch.device) -> PackedSplit:
    is_large = device.type != "cpu" and pixels.nbytes > MAX_SHARE_OF_FREE_MEMORY * free_memory(device)
    return PackedSplit(pixels if is_large else pixels.to(device), labels.to(device), description, is_large)
