"""Decode a photo's bytes to an image."""

import io
import logging
import re
import warnings
from collections.abc import Iterable
from contextlib import suppress

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError, features

EXTRA_SUFFIXES = {".heic": "HEIC", ".heif": "HEIC", ".jxl": "JPEG XL"}  # read by packages in requirements/phones.txt
readable_extras = set()
with suppress(ModuleNotFoundError):
    import pillow_heif

    pillow_heif.register_heif_opener()
    readable_extras |= {".heic", ".heif"}
with suppress(ModuleNotFoundError):
    import pillow_jxl  # noqa: F401 (it registers itself)

    readable_extras |= {".jxl"}

PHOTO_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".gif", ".bmp", ".tga", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm"}
    | ({".jp2", ".j2k"} if features.check("jpg_2000") else set())
    | ({".avif"} if features.check("avif") else set())
    | readable_extras
)
SIGNATURES = [  # how photos begin, and the suffix that they should have; TGA has no signature
    (re.compile(start, re.DOTALL), suffix)
    for start, suffix in (
        (rb"\xff\xd8\xff", ".jpg"),
        (rb"\x89PNG\r\n\x1a\n", ".png"),
        (rb"RIFF....WEBP", ".webp"),
        (rb"GIF8[79]a", ".gif"),
        (rb"BM....\0\0\0\0", ".bmp"),
        (rb"II[*+]\0|MM\0[*+]", ".tif"),
        (rb"P[1-6]\s+[#\d]", ".ppm"),
        (rb"\0\0\0\x0cjP  \r\n|\xff\x4f\xff\x51", ".jp2"),
        (rb"....ftypavi[fs]", ".avif"),
        (rb"....ftyp(hei[cxms]|hev[cx]|mif1)", ".heic"),
        (rb"\0\0\0\x0cJXL \r\n|\xff\x0a", ".jxl"),
    )
]

# As in torchvision's ImageNet recipes: the shorter side is scaled to 256/224 of the size, then the centre is cropped.
CENTER_CROP_SHARE = 224 / 256
HASHED_SIZE = 64  # pixels; what a perceptual hash needs at least

# Pillow's limits guard servers against small files that unpack to huge ones. Phones take photos of 200 megapixels, and
# scanners write long profiles; the size of a file is limited where it is read.
Image.MAX_IMAGE_PIXELS = 110_000_000  # an error above twice this
# Bytes.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 2**28  # pyrefly: ignore[bad-assignment]
# Keep up to 64 MB of freed images for the next ones: the system zeroes new memory, which takes a tenth of the time of a
# small photo. See https://pillow.readthedocs.io/en/stable/reference/block_allocator.html
Image.core.set_blocks_max(4)

UPRIGHT = 1  # EXIF orientation
TURNED = {  # by EXIF orientation: the transposition that turns the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


ON_THE_SIDE = [TURNED[orientation] for orientation in (5, 6, 7, 8)]  # these swap width and height


class UnreadablePhoto(Exception):
    """Raised for bytes that cannot be decoded. Its text gives the reason, which is the same on every machine."""


def decode(content: bytes, size: int, resize: str) -> np.ndarray:
    """Decode a photo, turn it upright and scale it, to uint8 RGB [size, size, 3].

    `resize` is `stretch` (the whole photo; the aspect ratio is not kept) or `center_crop` (its centre; the aspect ratio
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
    return open_upright_with_size(content, least_side)[0]


def open_upright_with_size(content: bytes, least_side: int | None = None) -> tuple[Image.Image, tuple[int, int]]:
    """As `open_upright`, and the full width and height of the upright photo."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            size = image.size
            if least_side:
                image.draft(None, (least_side, least_side))
            image.load()
            turn = _transposition(image)
            upright = image if turn is None else image.transpose(turn)
            return _to_rgb(upright), size[::-1] if turn in ON_THE_SIDE else size
    except MemoryError:
        raise
    except Exception as error:  # a decoder may raise anything on damaged bytes
        raise UnreadablePhoto(_explain(error, content)) from None


def photo_suffix(start: bytes) -> str:
    """The suffix that a file with these first bytes should have, such as .jpg; empty if it is not a photo."""
    return next((suffix for signature, suffix in SIGNATURES if signature.match(start)), "")


def what_to_install(suffixes: Iterable[str]) -> str:
    """What to install to read photos with these suffixes; empty if that is not needed, or would not help."""
    missing = sorted(
        {EXTRA_SUFFIXES[suffix] for suffix in EXTRA_SUFFIXES.keys() & suffixes if suffix not in PHOTO_SUFFIXES}
    )
    return (
        f"`pip install -r requirements/phones.txt && dvc repro --force prepare` to read {' and '.join(missing)}"
        if missing
        else ""
    )


def silence_pillow() -> None:
    """Silence Pillow's warnings and log messages about odd files; all that matters is whether they decode."""
    warnings.simplefilter("ignore")
    logging.getLogger("PIL").addHandler(logging.NullHandler())


def _transposition(image: Image.Image) -> Image.Transpose | None:
    """The transposition that turns an image upright, by its EXIF orientation; None if it is upright.

    Pillow's ImageOps.exif_transpose also rewrites the whole EXIF block, and fails on odd entries in it.
    """
    orientation = UPRIGHT
    with suppress(Exception):  # a defect of the metadata costs no photo
        orientation = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
    return TURNED.get(orientation)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # Pillow would clip 16-bit, 32-bit and float grey at 255
        image = Image.fromarray(_to_8_bits(np.asarray(image)))
    if image.has_transparency_data:  # show it on white: transparent pixels may have any colour
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """Scale grey values, integers or floats, to uint8 of the same shape.

    White is 1 for floats, and for integers the largest value of 8, 12 or 16 bits, whichever the photo's brightest
    value needs. Other floats and integers may mean anything (degrees, say), so the photo's lowest value becomes black
    and its highest white.
    """
    finite = np.isfinite(values)
    low, high = values[finite].min(), values[finite].max()
    is_float = values.dtype.kind == "f"
    if not is_float and low >= 0 and 1 < high < 2**16:
        return (values >> next(bits - 8 for bits in (8, 12, 16) if high < 2**bits)).astype(np.uint8)
    if low < 0 or high > 1:
        values = (values.astype(np.float64) - low) / ((float(high) - float(low)) or 1)
    return np.where(finite, np.rint(values * 255.0), 0).astype(np.uint8)


def _explain(error: Exception, content: bytes) -> str:
    """Say in plain words why a photo cannot be decoded."""
    if content.startswith(b"version https://git-lfs.github.com/"):
        return "a git-lfs pointer; run `git lfs pull`"
    suffix = photo_suffix(content)
    if suffix in EXTRA_SUFFIXES:
        kind = EXTRA_SUFFIXES[suffix]
        return f"{kind} is damaged" if suffix in PHOTO_SUFFIXES else f"{kind} inside; {what_to_install([suffix])}"
    if content[:512].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "a web page, not a photo"
    if isinstance(error, UnidentifiedImageError) and suffix == ".tif":
        return "a kind of TIFF that cannot be read, or damaged; save it as PNG"
    if isinstance(error, UnidentifiedImageError):
        return "not a photo, or damaged at its start"
    if isinstance(error, Image.DecompressionBombError):
        return "more than 220 megapixels"
    if "truncated" in str(error) or "Truncated" in str(error):
        return "file is cut off"
    return "damaged"
