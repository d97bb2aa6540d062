"""Find poor photos: dark, bright, blurred, tiny or of an odd shape.

Light and sharpness are measured on the prepared pixels, which are what the networks see. A large photo that is slightly
blurred is therefore not found: scaled down, it is sharp.
"""

from collections.abc import Iterable

from pipeline.networks.dataset import PackedSplit

import numpy as np
import pandas as pd
import torch
from torch import Tensor

BATCH = 64
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601, as in Pillow's conversion to grey
# These three are cleanvision's: https://github.com/cleanlab/cleanvision
DARK, DARK_SHARE = 0.32, 0.99  # dark: this share of the pixels is darker than this
BRIGHT, BRIGHT_SHARE = 0.95, 0.95  # bright: this share of the pixels is brighter than this
ODD_RATIO = 0.35  # odd shape: the shorter side, as a share of the longer one
# Of 400 photos of cats and dogs, none has less than a quarter of the median's sharpness; after a Gaussian blur with a
# standard deviation of 2 % of the shorter side, all have.
BLURRED_SHARE = 0.25
TINY_SHARE = 0.5  # tiny: the shorter side, as a share of prepare.image_size
MEASURES = ("brightness", "sharpness", "width", "height")
KINDS = ("dark", "bright", "blurred", "tiny", "odd shape")


def add_quality(photos: pd.DataFrame, splits: Iterable[PackedSplit], image_size: int) -> pd.DataFrame:
    """The photos with their MEASURES and `quality`: the KINDS that apply, separated by commas; mostly none.

    `photos` are in the row order of the splits and have `width` and `height` in pixels. `brightness` is the mean luma,
    from 0 to 1; `sharpness` is the standard deviation of the luma's Laplacian as a multiple of the luma's own, so that
    it depends little on contrast.
    """
    measured = pd.concat([_measure(packed.pixels) for packed in splits], ignore_index=True)
    sides = photos[["width", "height"]].astype(int)
    shorter, longer = sides.min(axis=1), sides.max(axis=1)
    applies = {
        "dark": measured["dark"] >= DARK_SHARE,
        "bright": measured["bright"] >= BRIGHT_SHARE,
        "blurred": measured["sharpness"] < BLURRED_SHARE * measured["sharpness"].median(),
        "tiny": shorter < TINY_SHARE * image_size,
        "odd shape": shorter < ODD_RATIO * longer,
    }
    quality = [", ".join(kind for kind in KINDS if applies[kind][row]) for row in range(len(photos))]
    others = photos.drop(columns=["width", "height"])
    return pd.concat([others, sides, measured[["brightness", "sharpness"]]], axis=1).assign(quality=quality)


def worst(photos: pd.DataFrame, kind: str, most: int) -> pd.DataFrame:
    """Up to `most` photos of a kind, the worst first."""
    found = photos[[kind in quality.split(", ") for quality in photos["quality"]]]
    sides = found[["width", "height"]]
    badness = {
        "dark": found["brightness"],
        "bright": -found["brightness"],
        "blurred": found["sharpness"],
        "tiny": sides.min(axis=1),
        "odd shape": sides.min(axis=1) / sides.max(axis=1),
    }
    return found.iloc[np.argsort(badness[kind].to_numpy(), kind="stable")[:most]]


def _measure(pixels: Tensor) -> pd.DataFrame:
    """The brightness and sharpness of photos uint8 [N, size, size, 3], and their shares of dark and bright pixels."""
    weights = torch.tensor(LUMA, device=pixels.device) / 255
    found = []
    for batch in pixels.split(BATCH):
        luma = batch.float() @ weights
        centre, around = luma[:, 1:-1, 1:-1], luma[:, :-2, 1:-1] + luma[:, 2:, 1:-1]
        edges = 4 * centre - around - luma[:, 1:-1, :-2] - luma[:, 1:-1, 2:]
        contrast = luma.std(dim=(1, 2)).clamp(min=1 / 255)  # not 0, even if all pixels are equal
        measures = [luma.mean(dim=(1, 2)), edges.std(dim=(1, 2)) / contrast]
        measures += [(luma < DARK).float().mean(dim=(1, 2)), (luma > BRIGHT).float().mean(dim=(1, 2))]
        found.append(torch.stack(measures, dim=1).cpu())
    return pd.DataFrame(torch.cat(found).double().numpy(), columns=["brightness", "sharpness", "dark", "bright"])
