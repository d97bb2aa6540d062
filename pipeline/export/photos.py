"""The prepared photos that exporting needs, and a synthetic one."""

import io

from pipeline.core.errors import UserError
from pipeline.core.packed import difference
from pipeline.core.paths import packed_split
from pipeline.inference.ensemble import Ensemble
from pipeline.networks.dataset import PackedSplit, open_split
from pipeline.photos.decoding import decode

import numpy as np
import torch
from PIL import Image, ImageDraw

CHECKED_PHOTOS = 100  # test photos, at most


def open_photos(split: str, ensemble: Ensemble) -> PackedSplit:
    """The photos of a split, on the CPU. Raises UserError if they are missing, or the models need others."""
    path = packed_split(split)
    packed = open_split(path, torch.device("cpu"))
    if different := difference(packed.description, ensemble.description):
        raise UserError(f"{path} has a different {different} than the models; run `dvc repro` to fix this")
    return packed


def photos_to_check(ensemble: Ensemble) -> tuple[np.ndarray, bytes]:
    """The images on which runtimes are compared with the pipeline, uint8 [N, size, size, 3]; and a PNG of the last one.

    They are the first test photos, and a synthetic one.
    """
    photos = open_photos("test", ensemble).pixels[:CHECKED_PHOTOS].numpy()
    example = encode_png(draw_example())
    return np.concatenate([photos, decode(example, ensemble.image_size, ensemble.resize)[np.newaxis]]), example


def draw_example() -> Image.Image:
    """A synthetic photo, wider than it is high: a light circle on a gradient."""
    height, width = 240, 320
    rows, columns = np.mgrid[0:height, 0:width]
    colours = [columns * 255 // width, rows * 255 // height, np.full_like(rows, 128)]
    photo = Image.fromarray(np.stack(colours, axis=-1).astype("uint8"))
    ImageDraw.Draw(photo).ellipse((60, 50, 200, 190), fill=(230, 200, 150))
    return photo


def encode_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
