"""Decode a photo's bytes to an image."""

import io
import logging
import warnings
from contextlib import suppress

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError, features

try:  # an extra: requirements/phones.txt
    import pillow_heif

    pillow_heif.register_heif_opener()
    HEIC_SUFFIXES = frozenset({".heic", ".heif"})
except ModuleNotFoundError:
    HEIC_SUFFIXES = frozenset()

PHOTO_SUFFIXES = (
    frozenset({".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
    | (frozenset({".avif"}) if features.check("avif") else frozenset())
    | HEIC_SUFFIXES
)
INSTALL_HEIC = "`pip install -r requirements/phones.txt` to read HEIC"

# As in torchvision's ImageNet recipes: the shorter side is scaled to 256/224 of the size, then the center is cropped.
CENTER_CROP_SHARE = 224 / 256
HASHED_SIZE = 64  # pixels; what a perceptual hash needs at least

# Pillow's limits guard servers against small files that unpack to huge ones. Phones take photos of 200 megapixels, and
# scanners write long profiles; the size of a file is limited where it is read.
Image.MAX_IMAGE_PIXELS = 110_000_000  # an error above twice this
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 2**28  # bytes

TURNED = {  # EXIF orientation: the transposition that turns the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadablePhoto(Exception):
    """Raised for bytes that cannot be decoded. Its text gives the reason, which is the same on every machine."""


def decode(content: bytes, size: int, resize: str) -> np.ndarray:
    """Decode a photo, turn it upright and scale it, to uint8 RGB [size, size, 3].

    `resize` is `squeeze` (the whole photo; the aspect ratio is not kept) or `center_crop` (its center; the aspect ratio
    is kept). Both scale with an antialiased bilinear filter. Raises UnreadablePhoto if the bytes cannot be decoded.
    """
    image = open_upright(content, least_side=2 * size)
    box = None
    if resize == "center_crop":
        side = min(image.size) * CENTER_CROP_SHARE
        left, top = (image.width - side) / 2, (image.height - side) / 2
        box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))


def open_upright(content: bytes, least_side: int | None = None) -> Image.Image:
    """Decode a photo to RGB, with its EXIF orientation applied and transparent parts white. Raises UnreadablePhoto.

    A JPEG may be decoded at a half, a quarter or an eighth of its size, which is several times faster, as long as both
    sides keep `least_side` pixels or more.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            if least_side:
                image.draft(None, (least_side, least_side))
            image.load()
            return _to_rgb(_turn_upright(image))
    except MemoryError:
        raise
    except Exception as error:  # a decoder may raise anything on damaged bytes
        raise UnreadablePhoto(_explain(error, content)) from None


def silence_pillow() -> None:
    """Silence Pillow's warnings and log messages about odd files; all that matters is whether they decode."""
    warnings.simplefilter("ignore")
    logging.getLogger("PIL").addHandler(logging.NullHandler())


def _turn_upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation, and nothing else of it.

    Pillow's ImageOps.exif_transpose also rewrites the whole EXIF block, and fails on odd entries in it.
    """
    orientation = None
    with suppress(Exception):  # a defect of the metadata costs no photo
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    method = TURNED.get(orientation)
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow would clip 16-bit grey at 255 instead of scaling it
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:  # show it on white: transparent pixels may have any colour
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _explain(error: Exception, content: bytes) -> str:
    """Say in plain words why a photo cannot be decoded."""
    if content.startswith(b"version https://git-lfs.github.com/"):
        return "a git-lfs pointer; run `git lfs pull`"
    if content[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypheim", b"ftypheis", b"ftyphevc"):
        return "HEIC is damaged" if HEIC_SUFFIXES else f"HEIC inside; {INSTALL_HEIC}"
    if content[:512].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "a web page, not a photo"
    if isinstance(error, UnidentifiedImageError):
        return "not a photo, or damaged at its start"
    if isinstance(error, Image.DecompressionBombError):
        return "more than 220 megapixels"
    if "truncated" in str(error) or "Truncated" in str(error):
        return "file is cut off"
    return "damaged"
