"""The contact sheet: the first photos of every split, as the networks see them."""

import zlib
from pathlib import Path

from pipeline.core import SPLITS
from pipeline.core.packed import read_packed

from PIL import Image, ImageDraw, ImageFont

COLUMNS, ROWS = 12, 3
SIDE, GAP, TITLE = 96, 4, 24  # pixels


def write_contact_sheet(path: Path, files: dict[str, Path]) -> None:
    """Write a PNG of the first photos of train, validation and test.

    `files` maps each split to its packed file.
    """
    step, height = SIDE + GAP, TITLE + ROWS * (SIDE + GAP)
    sheet = Image.new("RGB", (COLUMNS * step + GAP, len(SPLITS) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for top, split in zip(range(0, sheet.height, height), SPLITS, strict=True):
        photos = read_packed(files[split]).pixels
        draw.text((GAP, top + GAP), f"{split}: {len(photos)} photos", "black", ImageFont.load_default(16))
        for number, pixels in enumerate(photos[: COLUMNS * ROWS]):
            row, column = divmod(number, COLUMNS)
            thumbnail = Image.fromarray(pixels).resize((SIDE, SIDE))
            sheet.paste(thumbnail, (GAP + column * step, top + TITLE + row * step))
    # Photos have runs, but hardly any repetitions: looking for runs only takes a fifth of the time, for 2 % more bytes.
    sheet.save(path, format="PNG", compress_type=zlib.Z_RLE)
