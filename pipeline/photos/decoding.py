"""Decode a photo's bytes to an image."""

import io
import logging
import warnings

import numpy as np
from PIL import Image, ImageOps

# As in torchvision's ImageNet recipes: the shorter side is scaled to 256/224 of the size, then the center is cropped.
CENTER_CROP_SHARE = 224 / 256


class UnreadablePhoto(Exception):
    """Raised for bytes that cannot be decoded. Its text gives the reason, which is the same on every machine."""


def decode(content: bytes, size: int, resize: str) -> np.ndarray:
    """Decode a photo, turn it upright and scale it, to uint8 RGB [size, size, 3].

    `resize` is `squeeze` (the whole photo; the aspect ratio is not kept) or `center_crop` (its center; the aspect ratio
    is kept). Both scale with an antialiased bilinear filter. Raises UnreadablePhoto if the bytes cannot be decoded.
    """
    image = open_upright(content)
    box = None
    if resize == "center_crop":
        side = min(image.size) * CENTER_CROP_SHARE
        left, top = (image.width - side) / 2, (image.height - side) / 2
        box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))


def open_upright(content: bytes) -> Image.Image:
    """Decode a photo to RGB, with its EXIF orientation applied and transparent parts white. Raises UnreadablePhoto."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return _to_rgb(ImageOps.exif_transpose(image))
    except MemoryError:
        raise
    except Exception as error:  # a decoder may raise anything on damaged bytes
        raise UnreadablePhoto(f"unreadable ({type(error).__name__})") from None


def silence_pillow() -> None:
    """Silence Pillow's warnings and log messages about odd files; all that matters is whether they decode."""
    warnings.simplefilter("ignore")
    logging.getLogger("PIL").addHandler(logging.NullHandler())


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow would clip 16-bit grey at 255 instead of scaling it
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:  # show it on white: transparent pixels may have any colour
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
