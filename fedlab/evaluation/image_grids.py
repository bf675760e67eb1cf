"""Figures of generated images, as PNG files: next to real ones, and by predicted label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from fedlab.evaluation.png import new_figure, to_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Pixels = NDArray[np.uint8]

BACKGROUND = 96  # gray between tiles, which digits' black and white stand out from
SAMPLE_COLOR, CLIENT_COLORS = (
    "#b5451f",
    ("#2f6f9f", "#7fb3d5", "#1e8449", "#82c99d", "#7d5ba6", "#c3aed6", "#8c8c8c", "#c9c9c9"),
)


def tile_images(x: Tensor, columns: int) -> Pixels:
    """Arrange images (n, 1 or 3, height, width) in [-1, 1] in rows: uint8 (rows, pixels, 3), empty places gray."""
    x = ((x.detach().cpu().float().clamp(-1, 1) + 1) * 127.5).round().expand(-1, 3, -1, -1)
    missing = -len(x) % columns
    x = torch.cat([x, torch.full_like(x[:1], BACKGROUND).expand(missing, -1, -1, -1)]) if missing else x
    x = pad(x, (1, 1, 1, 1), value=BACKGROUND)
    count, _, height, width = x.shape
    rows = x.view(count // columns, columns, 3, height, width).permute(0, 3, 1, 4, 2)
    pixels: Pixels = rows.reshape(count // columns * height, columns * width, 3).to(torch.uint8).numpy()
    return pixels


def generated_and_real(generated: Tensor, real: Tensor, side: int = 8) -> bytes:
    """Return a PNG of images (batch, channels, height, width): a square of generated ones, left, and of real ones."""
    both = [tile_images(x[: side * side], side) for x in (generated, real)]
    canvas = new_figure(8.4, 4.5, "compressed")
    for axes, pixels, title in zip(canvas.subplots(1, 2), both, ("generated", "real"), strict=True):
        axes.imshow(pixels, interpolation="nearest")
        axes.set_title(title, fontsize=11)
        axes.axis("off")
    return to_png(canvas)


def label_plot(generated: Tensor, labels: Tensor, mixtures: Mapping[str, NDArray[np.float64]], each: int = 12) -> bytes:
    """Return a figure with a row of generated images for each label, and the fractions of labels.

    Parameters
    ----------
    generated, labels
        (n, 1 or 3, height, width) in [-1, 1], and integers (n,).
    mixtures
        Client to its number of images of each label (labels,); bars show their part of all.
    each
        Images of a row.
    """
    count = len(next(iter(mixtures.values())))
    rows = []
    for label in range(count):
        some = generated[labels == label][:each]
        blank = torch.full((each - len(some), *generated.shape[1:]), 2 * BACKGROUND / 255 - 1)
        rows.append(torch.cat([some.cpu(), blank]))
    fractions = np.bincount(labels.numpy(), minlength=count) / len(labels)
    total = sum(sizes.sum() for sizes in mixtures.values())
    canvas = new_figure(9.6, 5.2, "constrained")
    left, right = canvas.subplots(1, 2, width_ratios=(1.25, 1))
    pixels = tile_images(torch.cat(rows), each)
    left.imshow(pixels, interpolation="nearest", aspect="equal")
    height = len(pixels) / count
    left.set_yticks([height * (label + 0.5) for label in range(count)], [str(label) for label in range(count)])
    left.set_xticks([])
    left.tick_params(length=0)
    left.set_title("generated, by predicted label", fontsize=10)
    where = np.arange(count, dtype=np.float64)
    right.barh(where - 0.2, fractions, 0.38, color=SAMPLE_COLOR, label="generated")
    _stacked(right, where + 0.2, mixtures, total)
    right.set_yticks(where, [str(label) for label in range(count)])
    right.set_ylim(count - 0.5, -0.5)
    right.set_xlabel("fraction of images")
    right.locator_params(axis="x", nbins=5)
    right.set_title("labels: generated, and of clients", fontsize=10)
    right.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    for side in ("top", "right"):
        right.spines[side].set_visible(False)
    for spine in left.spines.values():
        spine.set_visible(False)
    return to_png(canvas)


def _stacked(axes: Axes, where: NDArray[np.float64], mixtures: Mapping[str, NDArray[np.float64]], total: float) -> None:
    """Draw stacked bars of every client's part; clients after the palette's last color share it."""
    start = np.zeros(len(where))
    for number, (name, sizes) in enumerate(mixtures.items()):
        color = CLIENT_COLORS[min(number, len(CLIENT_COLORS) - 1)]
        shown = name if number < len(CLIENT_COLORS) else "_"
        axes.barh(where, sizes / total, 0.38, left=start, color=color, label=shown)
        start = start + sizes / total
