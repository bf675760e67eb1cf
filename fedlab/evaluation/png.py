"""Figures without a window, as PNG files on white, independent of the theme of the page that shows them."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Literal

from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 144


def new_figure(width: float, height: float, layout: Literal["constrained", "compressed"] | None = None) -> Figure:
    """Return an empty figure, sizes in inches."""
    from matplotlib.figure import Figure  # late: it is slow to import, and a run without pictures needs none

    return Figure((width, height), dpi=DPI, facecolor="white", layout=layout)


def to_png(canvas: Figure) -> bytes:
    """Return a figure as a PNG file."""
    stream = io.BytesIO()
    canvas.savefig(stream, format="png", metadata={"Software": None})
    return optimize_png(Image.open(stream))


def optimize_png(page: Image.Image) -> bytes:
    """Return an image as a small PNG file."""
    stream = io.BytesIO()
    page.convert("RGB").save(stream, "PNG", optimize=True)
    return stream.getvalue()
