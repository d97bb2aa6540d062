"""Draw synthetic photos of cats and dogs, for a demo of the pipeline that needs no real photos.

Usage: python demo/draw.py ARCHIVE.zip [--photos 820] [--seed 1]
Writes a zip in the layout of Kaggle's train.zip: train/cat.0.jpg, ..., train/dog.0.jpg, ..., half cats and half dogs.
The same seed (and the same Pillow) gives the same bytes.

Size, background, coat, pose, position and light are distributed equally in both classes, so a network must learn
shapes: ears, eyes, muzzle, tail. Colour helps only a little (a dog's dark nose and tongue, a cat's pink nose).
"""

import argparse
import io
import math
import zipfile
from pathlib import Path
from random import Random

from PIL import Image, ImageDraw

OVERSAMPLING = 2  # draw larger and scale down, for smooth edges
JPEG_QUALITY = 85

Colour = tuple[int, ...]
Point = tuple[float, float]


def colours(text: str) -> list[Colour]:
    """Parse space-separated hex colours."""
    return [tuple(bytes.fromhex(code)) for code in text.split()]


COATS = colours("e89646 f6deb2 9698a0 62606a 9a6844 f7f3ec 7a5240 ceac80 748092 c46e3c b2a08e")
BACKDROPS = colours("a8d0e6 fad6a5 bedcb4 f0bebe cdbee1 ebe8d7 78a0aa 5a6e8c f5e68c aa786e 82aa78 dedee4")
COLLARS = colours("c8323c 3264be 28966e f0b428 8c50aa")
EYES = colours("96be50 e2b83c 78b4d2 c88c3c 8c5a2c")
WHITE, INK, PINK, RED, GOLD = colours("ffffff 2c2426 ee9ea0 e86874 f5cd50")


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """Mix two colours; `share` is that of the second."""
    return tuple(round(a + (b - a) * share) for a, b in zip(first, second, strict=True))


def oval(x: float, y: float, across: float, down: float) -> list[Point]:
    """An ellipse as a polygon, from its centre and its two radii."""
    return [(x + across * math.cos(k * math.pi / 16), y + down * math.sin(k * math.pi / 16)) for k in range(32)]


def mirrored(points: list[Point]) -> list[Point]:
    """The same points on the animal's other side."""
    return [(-x, y) for x, y in points]


def smooth(points: list[Point], closed: bool = True, steps: int = 7) -> list[Point]:
    """A smooth curve through all points (a Catmull-Rom spline)."""
    points = [points[-1], *points, *points[:2]] if closed else [points[0], *points, points[-1]]
    at = [step / steps for step in range(steps + 1)]
    weights = [(t * (t * (2 - t) - 1), t * t * (3 * t - 5) + 2, t * (t * (4 - 3 * t) + 1), t * t * (t - 1)) for t in at]
    curve = []
    for (ax, ay), (bx, by), (cx, cy), (dx, dy) in zip(points, points[1:], points[2:], points[3:], strict=False):
        curve += [
            ((a * ax + b * bx + c * cx + d * dx) / 2, (a * ay + b * by + c * cy + d * dy) / 2) for a, b, c, d in weights
        ]
    return curve


def symmetric(right: list[Point], closed: bool = True) -> list[Point]:
    """A smooth curve through `right` (one side, from top to bottom) and its mirror image."""
    return smooth(mirrored(right)[::-1] + right, closed)


class Pen:
    """Draws in the animal's units: the origin is the centre of the head, its radius is about 1, and y points down."""

    def __init__(self, image: Image.Image, centre: Point, unit: float, angle: float) -> None:
        self.image, self.centre, self.unit, self.angle = image, centre, unit, angle
        self.shift: Point = (0, 0)  # of the facial features, for a head that looks sideways
        self.coat, self.outline = image, INK
        self.draw = ImageDraw.Draw(image)

    def place(self, points: list[Point]) -> list[Point]:
        """Convert from the animal's units to pixels."""
        cos, sin = math.cos(self.angle) * self.unit, math.sin(self.angle) * self.unit
        moved = [(x + self.shift[0], y + self.shift[1]) for x, y in points]
        return [(self.centre[0] + x * cos - y * sin, self.centre[1] + x * sin + y * cos) for x, y in moved]

    def fill(self, points: list[Point], colour: Colour) -> None:
        """Fill a shape, without an outline."""
        self.draw.polygon(self.place(points), colour)

    def line(self, points: list[Point], colour: Colour, width: float) -> None:
        """Draw a stroke; its width is in the animal's units."""
        self.draw.line(self.place(points), colour, max(1, round(width * self.unit)), joint="curve")

    def part(self, points: list[Point], tint: Colour | None = None) -> None:
        """Draw a shape with an outline, filled with the animal's coat or with `tint`."""
        mask = Image.new("L", self.image.size)
        ImageDraw.Draw(mask).polygon(self.place(points), 255)
        if box := mask.getbbox():  # pasting over the whole image would take most of the time
            self.image.paste(tint or self.coat.crop(box), box, mask.crop(box))
        self.line([*points, *points[:2]], self.outline, 0.05)


def draw_backdrop(random: Random, size: tuple[int, int]) -> Image.Image:
    """A plain colour, a gradient, a meadow, a room or blurred colours."""
    width, height = size
    first, second = random.sample(BACKDROPS, 2)
    image = Image.new("RGB", size, first)
    draw = ImageDraw.Draw(image)
    kind = random.choice(["plain", "gradient", "meadow", "room", "blur"])
    if kind == "gradient":
        image.paste(second, (0, 0), Image.linear_gradient("L").rotate(random.choice([0, 90, 180])).resize(size))
    elif kind == "meadow":
        draw_meadow(random, image)
    elif kind == "room":
        floor, stripe = random.uniform(0.6, 0.85) * height, random.uniform(0.06, 0.12) * width
        for k in range(0, 18, 2) if random.random() < 0.6 else ():
            draw.rectangle((k * stripe, 0, (k + 1) * stripe, height), mix(first, WHITE, 0.25))
        x, y, side = random.uniform(0, 0.8) * width, random.uniform(0, 0.3) * height, random.uniform(0.2, 0.4) * width
        draw.rectangle((x, y, x + side, y + side), second, mix(second, INK, 0.6), round(side / 12))
        draw.rectangle((0, floor, width, height), mix(second, COATS[4], 0.6), mix(second, INK, 0.6))
    elif kind == "blur":
        image = Image.new("RGB", (random.randint(3, 12), random.randint(3, 12)))
        for place in range(image.width * image.height):
            image.putpixel(divmod(place, image.height), mix(first, random.choice(BACKDROPS), random.random()))
        image = image.resize(size, Image.Resampling.BICUBIC)
    return image


def draw_meadow(random: Random, image: Image.Image) -> None:
    """Sky, clouds, a hill, grass and flowers."""
    (width, height), draw = image.size, ImageDraw.Draw(image)
    hues = (colours("78b4eb d3c2be"), colours("5aa046 beb45a"))
    sky, grass = (mix(first, second, random.random()) for first, second in hues)
    image.paste(sky, (0, 0, *image.size))
    for _ in range(random.randint(0, 3)):
        x, y, r = random.random() * width, random.random() * height * 0.4, random.uniform(0.04, 0.09) * width
        for aside, size in ((-1.3, 0.7), (0, 1.1), (1.3, 0.8)):
            draw.polygon(oval(x + aside * r, y, size * r, size * r), mix(sky, WHITE, 0.8))
    ground = random.uniform(0.5, 0.8) * height
    draw.polygon(oval(random.random() * width, ground + 2 * height, 2 * width, 2 * height), grass)
    for _ in range(60):
        x, y = random.random() * width, random.uniform(ground, height)
        tip = (x + random.uniform(-0.02, 0.02) * width, y - random.uniform(0.02, 0.06) * height)
        draw.line((x, y, *tip), mix(grass, INK, random.uniform(0.1, 0.4)), OVERSAMPLING)
        if random.random() < 0.12:
            draw.polygon(oval(*tip, 0.015 * width, 0.015 * width), random.choice(COLLARS))


def draw_coat(random: Random, pen: Pen, base: Colour, second: Colour) -> Image.Image:
    """The fur as a separate image, from which every part of the animal is cut."""
    coat = Image.new("RGB", pen.image.size, base)
    brush = Pen(coat, pen.centre, pen.unit, pen.angle)
    pattern = random.choice(["plain", "stripes", "patches", "spots"])
    if pattern == "stripes":
        shade = mix(base, INK if sum(base) > 330 else WHITE, random.uniform(0.35, 0.6))
        for x in (-0.3, 0, 0.3):
            brush.fill([(x - 0.09, -1.1), (x + 0.09, -1.1), (x * 0.75, -0.45 + abs(x) / 3)], shade)
        for y in (0.0, 0.3, 0.6, 1.2, 1.5, 1.8, 2.1, 2.4):
            stripe = [(1.15, y - 0.09), (1.15, y + 0.09), (0.62 if y < 1 else 0.3, y + 0.04)]
            brush.fill(stripe, shade)
            brush.fill(mirrored(stripe), shade)
    elif pattern == "patches":
        for x, y in ((random.choice([-0.5, 0.5]), -0.3), (random.uniform(-1, 1), 0.9), (random.uniform(-1, 1), 1.6)):
            ring = [
                (x + dx * random.uniform(0.4, 0.65), y + dy * random.uniform(0.4, 0.65)) for dx, dy in oval(0, 0, 1, 1)
            ]
            brush.fill(smooth(ring[::4]), second)
    elif pattern == "spots":
        for _ in range(70):
            r = random.uniform(0.05, 0.11)
            brush.fill(oval(random.uniform(-1.2, 1.2), random.uniform(-1.3, 2.6), r, r), second)
    return coat


def draw_body(random: Random, pen: Pen, tail: list[Point], light: Colour) -> None:
    """A sitting body; a portrait shows only its shoulders."""
    tail = smooth(tail if random.random() < 0.5 else mirrored(tail), closed=False)
    for widening, colour in ((0.045, pen.outline), (0, light)):
        pen.line(tail, colour, 0.21 + 2 * widening)
        pen.fill(oval(*tail[-1], 0.1 + widening, 0.1 + widening), colour)  # a round tip
    pen.part(symmetric([(0.45, 0.6), (0.72, 1.1), (0.95, 1.8), (1.05, 2.35), (0.7, 2.65)]))
    pen.fill(symmetric([(0.1, 0.8), (0.36, 1.1), (0.25, 1.6), (0.1, 1.8)]), light)
    for x in (-0.34, 0.34):
        pen.line([(x * 0.8, 1.7), (x * 0.9, 2.55)], pen.outline, 0.05)
        pen.part(oval(x, 2.6, 0.3, 0.17), light)
        for toe in (x - 0.09, x + 0.09):
            pen.line([(toe, 2.6), (toe, 2.74)], pen.outline, 0.04)
    if random.random() < 0.5:
        pen.line(smooth([(-0.6, 0.75), (0, 1.02), (0.6, 0.75)], closed=False), random.choice(COLLARS), 0.17)
        pen.fill(oval(0, 1.16, 0.12, 0.12), GOLD)


def draw_cat(random: Random, pen: Pen, light: Colour, ear: Colour | None) -> None:
    """A wide head with pointed ears, almond eyes, a small pink nose and whiskers."""
    x, y = random.uniform(0.78, 0.98), random.uniform(-1.55, -1.3)
    inner = random.choice([PINK, light, mix(light, INK, 0.4)])
    for flip in (list, mirrored):
        pen.part(flip([(1.0, -0.1), (0.98, -0.7), (x, y), (0.5, -1.1), (0.12, -0.75)]), ear)
        pen.fill(flip([(0.84, -0.5), (x - 0.05, y + 0.3), (0.38, -0.85)]), inner)
    wide = random.uniform(0.98, 1.1)
    pen.part(symmetric([(0.4, -0.85), (0.85, -0.5), (wide, 0.05), (wide + 0.06, 0.4), (0.72, 0.68), (0.35, 0.85)]))
    pen.shift = (random.uniform(-0.14, 0.14), random.uniform(-0.05, 0.08))
    iris, slit, tall = random.choice(EYES), random.uniform(0.05, 0.12), random.uniform(0.17, 0.24)
    if random.random() < 0.5:
        pen.fill(symmetric([(0.02, -0.75), (0.1, -0.3), (0.4, 0.35), (0.45, 0.65), (0.2, 0.8)]), light)
    whisker = random.choice([WHITE, INK])
    for flip in (list, mirrored):
        pen.part(smooth(flip([(0.2, 0.06), (0.44, 0.02 + tall * 0.7), (0.71, -0.1), (0.44, -tall)])), iris)
        pen.fill(flip(oval(0.44, -0.03, slit, tall * 0.82)), INK)
        pen.fill(oval(flip([(0.44, 0)])[0][0] + 0.06, -0.1, 0.05, 0.05), WHITE)
        pen.fill(flip(oval(0.17, 0.46, 0.23, 0.18)), light)
        for rise in (-0.2, 0.0, 0.2):
            hair = [(0.38, 0.45 + rise / 3), (0.8, 0.4 + rise), (random.uniform(1.25, 1.45), 0.45 + rise * 1.7)]
            pen.line(smooth(flip(hair), closed=False), whisker, 0.03)
    pen.line(symmetric([(0, 0.42), (0.14, 0.56), (0.32, 0.46)], closed=False), pen.outline, 0.045)
    pen.fill(symmetric([(0.14, 0.28), (0.01, 0.42)]), RED)


def draw_dog(random: Random, pen: Pen, light: Colour, ear: Colour | None) -> None:
    """A longer head with hanging ears, round eyes, a broad muzzle with a big dark nose, and sometimes a tongue."""
    pen.part(symmetric([(0.3, -0.95), (0.75, -0.7), (0.88, -0.1), (0.72, 0.5), (0.45, 0.95), (0.15, 1.05)]))
    x, y = random.uniform(1.08, 1.3), random.uniform(0.35, 0.75)
    lobe = [(0.4, -0.9), (0.8, -0.92), (x, -0.4), (x + 0.05, y - 0.3), (x - 0.2, y), (0.8, y - 0.35), (0.72, -0.3)]
    for flip in (list, mirrored):
        pen.part(smooth(flip(lobe)), ear)
    pen.shift = (random.uniform(-0.12, 0.12), random.uniform(-0.05, 0.08))
    if random.random() < 0.5:
        pen.fill(symmetric([(0.02, -0.8), (0.12, -0.4), (0.3, 0.3)]), light)
    if random.random() < 0.55:
        tip = random.uniform(0.95, 1.2)
        pen.part(symmetric([(0.18, 0.7), (0.2, tip - 0.1), (0.02, tip)]), RED)
        pen.line([(0, 0.75), (0, tip - 0.12)], mix(RED, INK, 0.3), 0.04)
    iris, r, jowl = random.choice(EYES), random.uniform(0.13, 0.18), random.uniform(0.33, 0.4)
    for side in (-1, 1):
        pen.fill(oval(side * 0.2, 0.5, jowl, 0.34), light)
        pen.part(oval(side * 0.38, -0.18, r, r * 1.1), iris)
        pen.fill(oval(side * 0.38, -0.17, r * 0.62, r * 0.7), INK)
        pen.fill(oval(side * 0.38 + 0.05, -0.24, 0.05, 0.05), WHITE)
        pen.line([(side * 0.28, -0.5), (side * 0.5, -0.48)], pen.outline, 0.05)
    pen.line(symmetric([(0, 0.64), (0.2, 0.78), (0.45, 0.62)], closed=False), pen.outline, 0.05)
    pen.line([(0, 0.35), (0, 0.66)], pen.outline, 0.05)
    pen.fill(symmetric([(0.03, 0.1), (0.29, 0.2), (0.12, 0.4)]), INK)
    pen.fill(oval(-0.08, 0.19, 0.08, 0.035), mix(INK, WHITE, 0.5))


ANIMALS = {  # the function that draws the head, and the points of the tail
    "cat": (draw_cat, [(0.6, 2.4), (1.25, 2.3), (1.45, 1.7), (1.2, 1.25), (1.3, 0.95)]),
    "dog": (draw_dog, [(0.6, 2.3), (1.1, 2.1), (1.4, 1.75), (1.45, 1.4)]),
}


def draw_photo(kind: str, random: Random) -> Image.Image:
    """One cat or dog, as a portrait or in full, on a backdrop."""
    width = random.randint(120, 240)
    height = min(240, max(120, round(width * random.uniform(0.7, 1.4))))
    width, height = OVERSAMPLING * width, OVERSAMPLING * height
    image = draw_backdrop(random, (width, height))
    x = width * random.uniform(0.42, 0.58)
    if random.random() < 0.75:  # a portrait
        unit = min(height, width) / 2.8 * random.uniform(0.85, 1.1)
        y = height * random.uniform(0.48, 0.6)
    else:
        unit = min(height / 4.2, width / 2.7) * random.uniform(0.9, 1.05)
        y = height * 0.5 - unit * random.uniform(0.45, 0.8)
    pen = Pen(image, (x, y), unit, math.radians(random.uniform(-6, 6)))
    base, second = random.sample(COATS, 2)
    pen.coat = draw_coat(random, pen, base, second)
    pen.outline = mix(base, INK, 0.75)
    light = mix(base, WHITE, random.choice([0.5, 0.7, 0.9]))
    draw_head, tail = ANIMALS[kind]
    draw_body(random, pen, tail, mix(base, light, 0.5))
    pen.angle += math.radians(random.uniform(-16, 16))
    draw_head(random, pen, light, random.choice([None, second, mix(base, INK, 0.25)]))
    gain, offset = random.uniform(0.75, 1.15), random.uniform(-15, 15)
    image = image.reduce(OVERSAMPLING).point(lambda level: level * gain + offset)
    # A little grain, so that the file's size does not reveal the class: a cat's whiskers alone would make it larger.
    grain = Image.frombytes("L", image.size, random.randbytes(image.width * image.height)).convert("RGB")
    return Image.blend(image, grain, random.uniform(0.01, 0.06))


def write_archive(path: Path, photos: int, seed: int) -> None:
    """Draw the photos and write them to a zip; its entries have a fixed date, so that its bytes are always the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for kind in ANIMALS:
            for number in range(photos // 2):
                content = io.BytesIO()
                draw_photo(kind, Random(f"{seed} {kind} {number}")).save(content, "JPEG", quality=JPEG_QUALITY)
                archive.writestr(zipfile.ZipInfo(f"train/{kind}.{number}.jpg"), content.getvalue())


def main() -> None:
    """Read the command line and write the archive."""
    parser = argparse.ArgumentParser(description="Draw cats and dogs, and write them to a zip like Kaggle's train.zip.")
    parser.add_argument("archive", type=Path, help="the zip to write")
    parser.add_argument(
        "--photos", type=int, default=820, help="number of photos, half cats and half dogs (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="a different seed gives different photos (default: %(default)s)"
    )
    arguments = parser.parse_args()
    write_archive(arguments.archive, arguments.photos, arguments.seed)


if __name__ == "__main__":
    main()
