"""Random augmentations of digit images, drawn for each image of a batch from torch's current random stream.

Every strategy gets the same: an augmentation that only one of two methods sees makes their comparison unfair.

**Source**: random affine maps are standard for digits (Simard et al., ICDAR 2003). The recoloring is ours: polarity,
contrast and color of the strokes and of the ground are random.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from fedlab.data.dataset import Batch
from fedlab.data.pinned import send
from fedlab.data.random_batches import RandomTransform

# Ranges of ``random_affine`` of twice the strength: what proxies of other domains chose (see dualadapt.md).
WIDE: Mapping[str, Any] = {"degrees": 24.0, "shear": 0.4, "scale": (0.64, 1.3225), "shift": 0.16}


AFFINE_NUMBERS, COLOR_NUMBERS = 6, 7  # uniform numbers of an image
Padding = Literal["ground", "border"]


def random_affine(x: Tensor, padding: Padding = "ground", **ranges: Any) -> Tensor:
    """Apply a random affine map to each image.

    Parameters
    ----------
    x
        Images (batch, channels, height, width) in [-1, 1].
    padding
        What lies outside of the original: a ground of -1, or the nearest pixel of its border.
    ranges
        Those of :func:`affine_maps`.

    Returns
    -------
    Tensor
        Images of the same shape.
    """
    maps = affine_maps(torch.rand(AFFINE_NUMBERS, len(x)), **ranges)
    return moved(x, send(maps, x.device), padding)


def affine_maps(
    uniform: Tensor,
    degrees: float = 12.0,
    shear: float = 0.2,
    scale: tuple[float, float] = (0.8, 1.15),
    shift: float = 0.08,
) -> Tensor:
    """Return affine maps (batch, 2, 3) made of numbers.

    Parameters
    ----------
    uniform
        Numbers (6, batch) in [0, 1).
    degrees, shear, scale, shift
        Ranges: rotation, shear factor, size on each axis, translation in half image widths.
    """
    angle = _between(-degrees, degrees, uniform[0]) * math.pi / 180
    slant = _between(-shear, shear, uniform[1])
    wide, high = 1 / _between(*scale, uniform[2]), 1 / _between(*scale, uniform[3])
    cos, sin = torch.cos(angle), torch.sin(angle)
    rows = (
        torch.stack([cos * wide, (slant - sin) * high, _between(-shift, shift, uniform[4])], 1),
        torch.stack([sin * wide, cos * high, _between(-shift, shift, uniform[5])], 1),
    )
    return torch.stack(rows, 1)


def moved(x: Tensor, maps: Tensor, padding: Padding = "ground") -> Tensor:
    """Return images (batch, channels, height, width) in [-1, 1], moved by affine maps (batch, 2, 3) of their device."""
    grid = affine_grid(maps, list(x.shape), align_corners=False)  # (batch, height, width, 2)
    if padding == "border":
        return grid_sample(x, grid, align_corners=False, padding_mode="border")
    return grid_sample(x + 1, grid, align_corners=False) - 1  # outside is the ground


def _between(low: float, high: float, uniform: Tensor) -> Tensor:
    return low + (high - low) * uniform


def random_recolor(x: Tensor, plain: float = 0.35, gray: float = 0.2) -> Tensor:
    """Give strokes and ground of each image random colors: ground * (1 - m) + stroke * m, m the image in [0, 1].

    Parameters
    ----------
    x
        Images (batch, 3, height, width) in [-1, 1], bright strokes on a dark ground.
    plain, gray
        Fractions of images that stay as they are, and whose two colors are gray.

    Returns
    -------
    Tensor
        Images of the same shape, in [-1, 1].
    """
    return recolored(x, send(torch.rand(COLOR_NUMBERS * len(x)), x.device), plain, gray)


def recolored(x: Tensor, uniform: Tensor, plain: float = 0.35, gray: float = 0.2) -> Tensor:
    """Return :func:`random_recolor` of images with numbers (7 batch,) in [0, 1) that are where the images are."""
    count = len(x)
    mask = (x + 1) / 2
    colors = _between(-1, 1, uniform[: 6 * count]).view(2, count, 3, 1, 1)
    ground, stroke, kind = colors[0], colors[1], uniform[6 * count :].view(count, 1, 1, 1)
    is_gray = (kind >= plain) & (kind < plain + gray)
    ground = torch.where(is_gray, ground[:, :1], ground)
    stroke = torch.where(is_gray, stroke[:, :1], stroke)
    return torch.where(kind < plain, x, ground * (1 - mask) + stroke * mask)


def source_views(read: Callable[[Batch], Batch], **ranges: Any) -> RandomTransform:
    """Return the transform that moves and recolors the images ``x`` of each batch.

    Parameters
    ----------
    read
        What comes before: from stored columns to images (batch, 3, height, width) in [-1, 1], without a draw.
    ranges
        Those of :func:`affine_maps`.
    """
    numbers = AFFINE_NUMBERS + COLOR_NUMBERS

    def draw(count: int, generator: torch.Generator | None, fixed: bool) -> Batch:
        return {"uniform": torch.rand(numbers * count, generator=generator)}

    def apply(batch: Batch, drawn: Batch) -> Batch:
        batch = read(batch)
        x, uniform = batch["x"], drawn["uniform"]
        of_maps = AFFINE_NUMBERS * len(x)
        x = moved(x, affine_maps(uniform[:of_maps].view(AFFINE_NUMBERS, -1), **ranges))
        return {**batch, "x": recolored(x, uniform[of_maps:])}

    return RandomTransform(draw, apply)
