"""Random augmentations of digit images, drawn for each image of a batch from torch's current random stream.

Every strategy gets the same: an augmentation that only one of two methods sees makes their comparison unfair.

**Source**: random affine maps are standard for digits (Simard et al., ICDAR 2003). The recoloring is ours: polarity,
contrast and color of the strokes and of the ground are random.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from fedlab.data.pinned import send

# Ranges of ``random_affine`` of twice the strength: what proxies of other domains chose (see dualadapt.md).
WIDE: Mapping[str, Any] = {"degrees": 24.0, "shear": 0.4, "scale": (0.64, 1.3225), "shift": 0.16}


def _uniform(low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(*shape)


def random_affine(
    x: Tensor,
    degrees: float = 12.0,
    shear: float = 0.2,
    scale: tuple[float, float] = (0.8, 1.15),
    shift: float = 0.08,
    padding: Literal["ground", "border"] = "ground",
) -> Tensor:
    """Apply a random affine map to each image.

    Parameters
    ----------
    x
        Images (batch, channels, height, width) in [-1, 1].
    degrees, shear, scale, shift
        Ranges: rotation, shear factor, size on each axis, translation in half image widths.
    padding
        What lies outside of the original: a ground of -1, or the nearest pixel of its border.

    Returns
    -------
    Tensor
        Images of the same shape.
    """
    count = len(x)
    angle = _uniform(-degrees, degrees, count) * math.pi / 180
    slant = _uniform(-shear, shear, count)
    wide, high = 1 / _uniform(*scale, count), 1 / _uniform(*scale, count)
    cos, sin = torch.cos(angle), torch.sin(angle)
    rows = (
        torch.stack([cos * wide, (slant - sin) * high, _uniform(-shift, shift, count)], 1),
        torch.stack([sin * wide, cos * high, _uniform(-shift, shift, count)], 1),
    )
    maps = send(torch.stack(rows, 1), x.device)
    grid = affine_grid(maps, list(x.shape), align_corners=False)  # (batch, height, width, 2)
    if padding == "border":
        return grid_sample(x, grid, align_corners=False, padding_mode="border")
    return grid_sample(x + 1, grid, align_corners=False) - 1  # outside is the ground


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
    count = len(x)
    mask = (x + 1) / 2
    ground, stroke = _uniform(-1, 1, count, 3, 1, 1), _uniform(-1, 1, count, 3, 1, 1)
    kind = torch.rand(count, 1, 1, 1)
    is_gray = (kind >= plain) & (kind < plain + gray)
    ground = torch.where(is_gray, ground[:, :1], ground)
    stroke = torch.where(is_gray, stroke[:, :1], stroke)
    same, ground, stroke = (send(part, x.device) for part in (kind < plain, ground, stroke))
    return torch.where(same, x, ground * (1 - mask) + stroke * mask)
