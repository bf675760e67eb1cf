"""Digit images rendered with the fonts that matplotlib ships, on varied backgrounds: a domain without a download.

Size, place, rotation and font of the digit vary, as do its color, an outline, the background (flat, a gradient or
smooth noise), fragments of neighboring digits, blur and sensor noise. Digit and background always differ in lightness
by at least ``MIN_CONTRAST``, so that a person can read every image.

**Source**: in the spirit of SynthDigits (Ganin & Lempitsky, ICML 2015, arXiv 1409.7495, section 4) and of the look
of SVHN (Netzer et al., 2011).
**Departures**: (1) a new generator, not their images, which were drawn with Windows fonts and are not redistributed;
(2) smooth noise in place of photographs behind the digits.

The images depend on the seed and on the versions of Pillow and matplotlib (its FreeType, its fonts); the sets that
ship with the package are files, see ``embedded/README.md``.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from fedlab.data.pixels import LUMA

SIZE = 32  # pixels a side of a finished image
SCALE = 2  # drawn this many times larger, then averaged down: smooth edges without hinting
CANVAS = SIZE * SCALE
MIN_CONTRAST = 0.35  # of lightness in [0, 1], between the digit and nearly every background pixel around it
LIGHTNESS = np.array(LUMA)  # weights of red, green and blue

# Text faces whose Latin digits stand on the line. Of the faces beside them, the symbol-only ones (STIXSiz*, cmex10,
# cmsy10) have no digits and cmmi10 has old-style ones that hang below the line.
FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSans-BoldOblique.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSansMono-Bold.ttf",
    "DejaVuSansMono-Oblique.ttf",
    "DejaVuSansMono-BoldOblique.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSerif-Italic.ttf",
    "DejaVuSerif-BoldItalic.ttf",
    "STIXGeneral.ttf",
    "STIXGeneralBol.ttf",
    "STIXGeneralItalic.ttf",
    "STIXGeneralBolIta.ttf",
    "cmr10.ttf",
    "cmb10.ttf",
    "cmss10.ttf",
    "cmtt10.ttf",
)


def generate(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Render ``count`` digits; the same seed gives the same images.

    Parameters
    ----------
    count
        Number of images, at least 1.
    seed
        Any non-negative integer; different seeds give independent images.

    Returns
    -------
    images : (count, 32, 32, 3), uint8
    labels : (count,), int64, every digit as often as any other, up to 1
    """
    rng = np.random.default_rng([seed, 0x5D161])
    labels = rng.permutation(np.arange(count) % 10)
    images = np.stack([_draw(int(label), rng) for label in labels])
    return images, labels.astype(np.int64)


def _draw(digit: int, rng: Generator) -> NDArray[np.uint8]:
    """Render one image, (32, 32, 3)."""
    ink, neighbors = _masks(digit, rng)  # (64, 64) each, 1 where there is ink
    background = _background(rng)  # (64, 64, 3) in [0, 1]
    near = ink.filter(ImageFilter.MaxFilter(2 * SCALE + 1))  # the digit and a rim of one finished pixel around it
    color = _readable_color(background[np.asarray(near) > 0], rng)

    shade = np.ones(3) if rng.random() < 0.5 else rng.uniform(0.75, 1.0, 3)
    alpha = np.asarray(neighbors, dtype=np.float64)[..., None] / 255
    picture = background * (1 - alpha) + color * shade * alpha
    alpha = np.asarray(ink, dtype=np.float64)[..., None] / 255
    picture = picture * (1 - alpha) + color * alpha

    small = picture.reshape(SIZE, SCALE, SIZE, SCALE, 3).mean(axis=(1, 3))  # (32, 32, 3)
    if rng.random() < 0.3:
        blur = ImageFilter.GaussianBlur(rng.uniform(0.3, 0.7))
        small = np.asarray(Image.fromarray(_bytes(small)).filter(blur)) / 255
    return _bytes(small + rng.normal(0, rng.uniform(0, 0.03), small.shape))


def _masks(digit: int, rng: Generator) -> tuple[Image.Image, Image.Image]:
    """Return the ink of the digit, and that of the neighbors that reach into the picture, as two gray images."""
    font = _font(FONTS[rng.integers(len(FONTS))], SCALE * int(rng.integers(19, 29)))
    stroke = int(rng.integers(0, SCALE))
    left, top, right, bottom = font.getbbox(str(digit), anchor="ms", stroke_width=stroke)
    width, height = right - left, bottom - top
    reach, margin = 4 * SCALE, 2 * SCALE  # farthest from the center; nearest to the border
    x = CANVAS / 2 + rng.uniform(-1, 1) * min(reach, max(0.0, (CANVAS - width) / 2 - margin))
    y = CANVAS / 2 + height / 2 + rng.uniform(-1, 1) * min(reach, max(0.0, (CANVAS - height) / 2 - margin))
    angle, slant = rng.uniform(-20, 20), rng.uniform(-0.15, 0.15)
    # Far enough that the border cuts a neighbor even beside a narrow 1: it must stay clear which digit is meant.
    gap = max(width / 2 + SCALE * rng.uniform(1.5, 4), 9 * SCALE)

    def place(text: str, anchor: str, offset: float) -> Image.Image:
        canvas = Image.new("L", (CANVAS, CANVAS))
        ImageDraw.Draw(canvas).text((x + offset, y), text, fill=255, font=font, anchor=anchor, stroke_width=stroke)
        shear = (1, slant, -slant * CANVAS / 2, 0, 1, 0)
        canvas = canvas.transform(canvas.size, Image.Transform.AFFINE, shear, Image.Resampling.BILINEAR)
        return canvas.rotate(angle, Image.Resampling.BILINEAR, center=(x, y - height / 2))

    neighbors = Image.new("L", (CANVAS, CANVAS))
    for anchor, side in (("rs", -1), ("ls", 1)):
        if rng.random() < 0.35:
            neighbor = place(str(rng.integers(10)), anchor, side * gap)
            neighbors = Image.fromarray(np.maximum(np.asarray(neighbors), np.asarray(neighbor)))
    return place(str(digit), "ms", 0.0), neighbors


def _background(rng: Generator) -> NDArray[np.float64]:
    """Return a flat color, a gradient or smooth noise between two colors of near lightness, (64, 64, 3) in [0, 1]."""
    first = rng.uniform(0, 1, 3)
    second = rng.uniform(0, 1, 3)
    # Two colors of far lightness would leave no room for a digit that stands out from both.
    shift = rng.uniform(-0.2, 0.2) + (first - second) @ LIGHTNESS
    second = np.clip(second + shift, 0, 1)
    weight: NDArray[np.float64]
    kind = rng.choice(["flat", "gradient", "noise"], p=[0.2, 0.35, 0.45])
    if kind == "flat":
        weight = np.zeros((CANVAS, CANVAS))
    elif kind == "gradient":
        angle = rng.uniform(0, 2 * np.pi)
        rows, columns = np.mgrid[-0.5 : 0.5 : CANVAS * 1j, -0.5 : 0.5 : CANVAS * 1j]
        weight = np.clip(0.5 + rows * np.sin(angle) + columns * np.cos(angle), 0, 1)
    else:
        coarse, fine = rng.choice([3, 5, 9, 16], 2)
        weight = (_smooth_noise(int(coarse), rng) + _smooth_noise(int(fine), rng)) / 2
    picture: NDArray[np.float64] = first + (second - first) * weight[..., None]
    return picture


def _smooth_noise(cells: int, rng: Generator) -> NDArray[np.float64]:
    """Return uniform noise on a coarse grid, interpolated to the canvas, (64, 64) in [0, 1]."""
    grid = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
    return np.asarray(grid.resize((CANVAS, CANVAS), Image.Resampling.BICUBIC)) / 255


def _readable_color(around: NDArray[np.float64], rng: Generator) -> NDArray[np.float64]:
    """Return a random color (3,) at least MIN_CONTRAST lighter or darker than nearly all pixels (pixels, 3)."""
    darkest, lightest = np.quantile(around @ LIGHTNESS, [0.02, 0.98])
    for _ in range(100):
        color = rng.uniform(0, 1, 3)
        lightness = color @ LIGHTNESS
        if lightness < darkest - MIN_CONTRAST or lightness > lightest + MIN_CONTRAST:
            return color
    return np.full(3, 1.0 if 1 - lightest > darkest else 0.0)


def _bytes(picture: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    import matplotlib  # late: its fonts are needed only where digits are drawn

    # The basic layout engine is always compiled in; the other one is a library of the system.
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", name)
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)
