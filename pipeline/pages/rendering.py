"""Render HTML pages that are single files and open offline: all content is embedded, images included."""

import base64
import io
from collections.abc import Mapping
from pathlib import Path

from pipeline.scores.selection import describe_mean

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

TEMPLATES = Path(__file__).with_name("templates")
JPEG_QUALITY = 80
HEAT_COLOUR = (255, 90, 0)


def render(template: str, **content: object) -> str:
    """Fill in a template from templates/. In HTML templates, all content is escaped unless it is Markup."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=lambda name: name is not None and name.endswith(".html.jinja"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "most_probable": most_probable,
        "says": says,
        "describe_mean": describe_mean,
    }
    return environment.get_template(template).render(content)


def thumbnail(pixels: np.ndarray, side: int = 160) -> str:
    """An image (uint8 [size, size, 3]) as a data URI, at most `side` pixels wide."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side))
    return jpeg_uri(image)


def heat_uri(pixels: np.ndarray, heat: np.ndarray, side: int = 112) -> str:
    """As `heat_image`, as a data URI."""
    return jpeg_uri(heat_image(pixels, heat, side))


def heat_image(pixels: np.ndarray, heat: np.ndarray, side: int) -> Image.Image:
    """An image (uint8 [size, size, 3]) in pale grey, coloured where a heat map (uint8 [height, width]) is high.

    `side` is in pixels.
    """
    image = Image.fromarray(pixels).resize((side, side)).convert("L").convert("RGB")
    pale = Image.blend(image, Image.new("RGB", image.size, "white"), 0.35)
    coloured = Image.blend(image, Image.new("RGB", image.size, HEAT_COLOUR), 0.6)
    return Image.composite(coloured, pale, Image.fromarray(heat).resize((side, side), Image.Resampling.BICUBIC))


def jpeg_uri(image: Image.Image) -> str:
    """An RGB image as a data URI."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def percent(share: float, digits: int = 2) -> str:
    """0.990889 as `99.09 %`, with a no-break space. Only exactly 1 and 0 become 100 % and 0 %."""
    step = 10.0 ** -(digits + 2)
    if 1 - step / 2 < share < 1:
        return f"> {100 * (1 - step):.{digits}f}\N{NO-BREAK SPACE}%"
    if 0 < share < step / 2:
        return f"< {100 * step:.{digits}f}\N{NO-BREAK SPACE}%"
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def most_probable(probabilities: Mapping[str, float], count: int) -> dict[str, float]:
    """The `count` most probable classes and their probabilities, the most probable first, equal ones in class order."""
    return dict(sorted(probabilities.items(), key=lambda item: -item[1])[:count])


def says(probabilities: Mapping[str, float]) -> str:
    """The predicted class and its probability: `dog 98.1 %`."""
    [(label, probability)] = most_probable(probabilities, 1).items()
    return f"{label} {percent(probability, 1)}"
