"""Synthetic photos of odd shapes, modes and formats, which a careless reader decodes differently."""

from collections.abc import Iterator

from tests.support.photos import encode

import numpy as np
from PIL import ExifTags, Image

ORIENTATIONS = range(1, 9)
SHAPES = [(1, 1), (7, 300), (300, 7), (33, 32), (64, 64), (257, 129), (700, 500), (1200, 90)]  # width and height


def odd_photos() -> dict[str, bytes]:
    """The photos' bytes, by file name."""
    return dict(_photos())


def _photos() -> Iterator[tuple[str, bytes]]:
    for number, size in enumerate(SHAPES):
        for suffix, options in {"jpg": {"quality": 90}, "png": {}, "webp": {"lossless": True}}.items():
            name = f"{size[0]}x{size[1]}.{suffix}"
            yield name, encode(colours(number, size), {"jpg": "JPEG"}.get(suffix, suffix.upper()), **options)
    for orientation in ORIENTATIONS:
        for suffix, file_format in {"jpg": "JPEG", "png": "PNG", "tif": "TIFF"}.items():
            exif = Image.Exif()
            exif[ExifTags.Base.Orientation] = orientation
            yield f"turned{orientation}.{suffix}", encode(colours(orientation, (61, 40)), file_format, exif=exif)

    photo = colours(20, (90, 50))
    alpha = Image.fromarray(np.random.default_rng(21).integers(0, 256, (50, 90), "uint8"))
    transparent = photo.convert("RGBA")
    transparent.putalpha(alpha)
    yield "rgba.png", encode(transparent, "PNG")
    yield "rgba.webp", encode(transparent, "WEBP", lossless=True)
    yield "la.png", encode(Image.merge("LA", (photo.convert("L"), alpha)), "PNG")
    yield "palette.png", encode(photo.quantize(17), "PNG")
    yield "palette-transparent.png", encode(photo.quantize(17), "PNG", transparency=3)
    yield "transparent-colour.png", encode(photo.quantize(4).convert("RGB"), "PNG", transparency=photo.getpixel((0, 0)))
    yield "animated.gif", encode(photo.quantize(9), "GIF", save_all=True, append_images=[alpha])
    yield "grey.jpg", encode(photo.convert("L"))
    yield "bilevel.png", encode(photo.convert("1"), "PNG")
    yield "cmyk.jpg", encode(photo.convert("CMYK"))
    yield "cmyk.tif", encode(photo.convert("CMYK"), "TIFF")
    yield "ycbcr.tif", encode(photo.convert("YCbCr"), "TIFF")
    yield "lab.tif", encode(photo.convert("LAB"), "TIFF")
    yield "progressive.jpg", encode(colours(22, (640, 480)), progressive=True)
    yield from _deep_photos()


def _deep_photos() -> Iterator[tuple[str, bytes]]:
    """Grey photos with other values than from 0 to 255."""
    random = np.random.default_rng(23)
    for bits in (1, 8, 12, 16):
        yield f"grey{bits}.png", encode(Image.fromarray(random.integers(0, 2**bits, (50, 90), "uint16")), "PNG")
    yield "black16.png", encode(Image.fromarray(np.zeros((50, 90), "uint16")), "PNG")
    yield "negative32.tif", encode(Image.fromarray(random.integers(-(2**20), 2**20, (50, 90), "int32")), "TIFF")
    yield "large32.tif", encode(Image.fromarray(random.integers(0, 2**20, (50, 90), "int32")), "TIFF")
    floats = random.random((50, 90), "float32")
    yield "float.tif", encode(Image.fromarray(floats), "TIFF")
    yield "degrees.tif", encode(Image.fromarray(60 * floats - 20), "TIFF")
    floats[5:9, 3:7], floats[20, 30] = np.nan, np.inf
    yield "holes.tif", encode(Image.fromarray(100 * floats), "TIFF")


def colours(seed: int, size: tuple[int, int]) -> Image.Image:
    """Smooth random colours of this width and height: a shift, a turn or another filter changes them."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), "uint8")
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
