"""Random views of photographs and drawings: torchvision's v2 transforms, with parameters of its own for every image.

A v2 transform draws one set of parameters a call, so a batch would share one crop and one change of color, and a
contrastive loss could tell images apart by colors that no view changed between them. Here parameters are drawn for all
images at once by the same laws, from torch's current random stream, and applied in one batch; each image comes out as
v2's functions with these parameters give it (``tests/fedlab/data/images/test_views.py``).

**Departures**: (1) the order of the three color changes is drawn once a batch; (2) the position of a crop is drawn
uniformly as in v2, from one real number instead of one integer draw.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from fedlab.data.pixels import TORCHVISION_LUMA

RATIOS = (3 / 4, 4 / 3)
MAX_TRIES = 10


class Boxes(NamedTuple):
    """Upper edge, left edge, height and width of a crop in pixels, each (batch,)."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor


def sample_boxes(count: int, size: int, smallest: float) -> Boxes:
    """Crops of v2's RandomResizedCrop: area uniform in [smallest, 1], log ratio uniform, ten tries, else all of it."""
    area = size * size * torch.empty(count, MAX_TRIES).uniform_(smallest, 1)
    ratio = torch.empty(count, MAX_TRIES).uniform_(*map(math.log, RATIOS)).exp()
    width, height = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (width > 0) & (width <= size) & (height > 0) & (height <= size)
    first = fits.int().argmax(1, keepdim=True)
    some = fits.any(1)
    width = torch.where(some, width.gather(1, first)[:, 0], size)
    height = torch.where(some, height.gather(1, first)[:, 0], size)
    corner = torch.rand(count, 2)
    return Boxes(
        (corner[:, 0] * (size - height + 1)).floor(), (corner[:, 1] * (size - width + 1)).floor(), height, width
    )


def crop(x: Tensor, boxes: Boxes) -> Tensor:
    """Each image's box, resized bilinearly to the whole image's size; (batch, channels, size, size)."""
    size = x.shape[-1]

    def positions(start: Tensor, length: Tensor) -> Tensor:  # (batch, size) in [-1, 1]
        center = start[:, None] + (torch.arange(size) + 0.5) * length[:, None] / size - 0.5
        inside = torch.minimum(torch.maximum(center, start[:, None]), (start + length)[:, None] - 1)
        return (2 * inside + 1) / size - 1

    rows, columns = positions(boxes.top, boxes.height), positions(boxes.left, boxes.width)
    grid = torch.stack([columns[:, None].expand(-1, size, -1), rows[:, :, None].expand(-1, -1, size)], 3)
    return grid_sample(x, grid.to(x), padding_mode="border", align_corners=False)


def flip(x: Tensor, mirrored: Tensor) -> Tensor:
    """Left and right exchanged where ``mirrored`` (batch,) says so."""
    return torch.where(mirrored.to(x.device)[:, None, None, None], x.flip(-1), x)


def to_grayscale(x: Tensor) -> Tensor:
    """(batch, 3, height, width) to (batch, 1, height, width)."""
    return (x * torch.tensor(TORCHVISION_LUMA).to(x)[:, None, None]).sum(1, keepdim=True)


def adjust_brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Towards black or beyond; images in [0, 1], factors (batch, 1, 1, 1)."""
    return (x * factor).clamp(0, 1)


def adjust_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Towards the image's mean gray or away from it."""
    return (x * factor + (1 - factor) * to_grayscale(x).mean((1, 2, 3), keepdim=True)).clamp(0, 1)


def adjust_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Towards each pixel's gray or away from it."""
    return (x * factor + (1 - factor) * to_grayscale(x)).clamp(0, 1)


ADJUSTMENTS = (adjust_brightness, adjust_contrast, adjust_saturation)


def color_jitter(x: Tensor, strength: float) -> Tensor:
    """v2's ColorJitter without hue, its factors uniform in [1 - strength, 1 + strength]; images in [-1, 1]."""
    if not strength:
        return x
    x = (x + 1) / 2
    for change in torch.randperm(len(ADJUSTMENTS)).tolist():
        factor = torch.empty(len(x), 1, 1, 1).uniform_(max(0.0, 1 - strength), 1 + strength)
        x = ADJUSTMENTS[change](x, factor.to(x))
    return 2 * x - 1


def random_view(x: Tensor, smallest: float, strength: float, mirror: bool) -> Tensor:
    """A random view of each image.

    Parameters
    ----------
    x
        Images (batch, 3, size, size) in [-1, 1].
    smallest
        Least share of the area that a crop keeps, in (0, 1]; 0.08 is torchvision's, 1 crops nothing.
    strength
        Of the changes of brightness, contrast and saturation.
    mirror
        Whether half of the images are mirrored; characters do not survive it.
    """
    x = crop(x, sample_boxes(len(x), x.shape[-1], smallest)) if smallest < 1 else x
    x = color_jitter(x, strength)
    return flip(x, torch.rand(len(x)) < 0.5) if mirror else x
