"""Predictions as an image: the photos in a grid, with their labels."""

import math
from pathlib import Path

from pipeline.inference.ensemble import Prediction
from pipeline.pages.rendering import heat_image, says

import matplotlib
from PIL import Image, ImageDraw, ImageFont

MAX_IN_GRID = 1000  # photos
FONT = f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf"  # Pillow's own lacks Greek and Cyrillic letters


def draw_predictions(predictions: list[Prediction]) -> Image.Image:
    """The photos in a grid, as the networks saw them, each with its prediction and name.

    Where the networks looked is below each photo, if the predictions have heat maps.
    """
    side, gap, text_height = 160, 12, 40  # pixels
    members = max((list(prediction.heat_maps) for prediction in predictions), key=len)
    map_side = side // len(members) if members else 0
    columns = min(6, max(2, math.ceil(math.sqrt(len(predictions)))))
    rows = math.ceil(len(predictions) / columns)
    height = side + map_side + text_height
    sheet = Image.new("RGB", (columns * (side + gap) + gap, rows * (height + gap) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.truetype(FONT, 14), ImageFont.truetype(FONT, 11)
    for number, prediction in enumerate(predictions):
        row, column = divmod(number, columns)
        left, top = gap + column * (side + gap), gap + row * (height + gap)
        if prediction.pixels is None:
            draw.rectangle((left, top, left + side - 1, top + side - 1), outline="grey")
            text = "unreadable"
        else:
            sheet.paste(Image.fromarray(prediction.pixels).resize((side, side)), (left, top))
            text = "none of these" if prediction.rejected else says(prediction.ensemble)
            for place, (name, heat) in enumerate(prediction.heat_maps.items()):
                corner = (left + place * map_side, top + side)
                sheet.paste(heat_image(prediction.pixels, heat, map_side), corner)
                draw.text(corner, shortened(name, small, map_side), "black", small)
        text_top = top + side + map_side
        draw.text((left, text_top + 2), shortened(text, large, side), "black", large)
        draw.text((left, text_top + 22), shortened(Path(prediction.photo).name, small, side), "dimgrey", small)
    return sheet


def shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """`text`, its middle replaced by … if it would be wider than `width` pixels."""
    middle = len(text) // 2
    start, end = text[:middle], text[middle:]
    while (start or end) and font.getlength(text) > width:
        start, end = start[:-1], end[1:]
        text = f"{start}…{end}"
    return text
