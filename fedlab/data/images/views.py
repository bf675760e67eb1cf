"""Random views of photographs and drawings: torchvision's v2 transforms, with separate parameters for every image.

A v2 transform draws one set of parameters a call, so a batch would share one crop and one change of color, and a
contrastive loss could tell images apart by colors that no view changed between them. Here parameters are drawn for all
images at once from the same distributions, from torch's current random stream, and applied in one batch; each image
comes out as v2's functions with these parameters give it (``tests/fedlab/data/images/test_views.py``).

**Departures**: (1) the order of the three color changes is drawn once a batch; (2) the position of a crop is drawn
uniformly as in v2, from one real number instead of one integer draw.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, pad

from fedlab.data.pinned import send
from fedlab.data.pixels import TORCHVISION_LUMA

RATIOS = (3 / 4, 4 / 3)
MAX_TRIES = 10


class Boxes(NamedTuple):
    """Top edge, left edge, height and width of a crop in pixels, each (batch,)."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor


def sample_boxes(count: int, size: int, min_area: float, generator: torch.Generator | None = None) -> Boxes:
    """Return ``count`` random crops as v2's RandomResizedCrop draws them.

    The area is uniform in [min_area, 1], the logarithm of the aspect ratio uniform; after ten tries that do not fit,
    the whole image.

    Parameters
    ----------
    count, size
        Number of crops, and pixels a side of the image.
    min_area
        Smallest fraction of the image's area.
    generator
        What to draw from; None: torch's current random stream.
    """
    area = size * size * torch.empty(count, MAX_TRIES).uniform_(min_area, 1, generator=generator)
    ratio = torch.empty(count, MAX_TRIES).uniform_(*map(math.log, RATIOS), generator=generator).exp()
    width, height = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (width > 0) & (width <= size) & (height > 0) & (height <= size)
    first = fits.int().argmax(1, keepdim=True)
    some = fits.any(1)
    width = torch.where(some, width.gather(1, first)[:, 0], size)
    height = torch.where(some, height.gather(1, first)[:, 0], size)
    corner = torch.rand(count, 2, generator=generator)
    return Boxes(
        (corner[:, 0] * (size - height + 1)).floor(), (corner[:, 1] * (size - width + 1)).floor(), height, width
    )


def crop(x: Tensor, boxes: Boxes) -> Tensor:
    """Return each image's box, resized bilinearly to the whole image's size: (batch, channels, size, size)."""
    size, place = x.shape[-1], boxes.top.device

    def positions(start: Tensor, length: Tensor) -> Tensor:  # (batch, size) in [-1, 1]
        center = start[:, None] + (torch.arange(size, device=place) + 0.5) * length[:, None] / size - 0.5
        inside = torch.minimum(torch.maximum(center, start[:, None]), (start + length)[:, None] - 1)
        return (2 * inside + 1) / size - 1

    rows, columns = positions(boxes.top, boxes.height), positions(boxes.left, boxes.width)
    grid = torch.stack([columns[:, None].expand(-1, size, -1), rows[:, :, None].expand(-1, -1, size)], 3)
    return grid_sample(x, send(grid, x.device).to(x), padding_mode="border", align_corners=False)


def padded_crop(x: Tensor, padding: int) -> Tensor:
    """Return a random square of each image with a black border, as large as the image: v2's RandomCrop with padding.

    Parameters
    ----------
    x
        Images (batch, channels, size, size) in [-1, 1].
    padding
        Width of the border in pixels.
    """
    return crop_padded(x, send(draw_corners(len(x), padding), x.device), padding)


def draw_corners(count: int, padding: int, generator: torch.Generator | None = None) -> Tensor:
    """Return the upper left corners (2, count), row and column, of random squares for :func:`crop_padded`."""
    return torch.randint(2 * padding + 1, (2, count), generator=generator)


def crop_padded(x: Tensor, corner: Tensor, padding: int) -> Tensor:
    """Return the squares of images (batch, channels, size, size) with black borders whose corners are (2, batch)."""
    channels, size = x.shape[1:3]
    rows, columns = corner[:, :, None] + torch.arange(size, device=x.device)  # (batch, size) each
    bordered = pad(x, (padding,) * 4, value=-1.0)
    strip = bordered.gather(2, rows[:, None, :, None].expand(-1, channels, -1, bordered.shape[-1]))
    return strip.gather(3, columns[:, None, None].expand(-1, channels, size, -1))


def flip(x: Tensor, where: Tensor) -> Tensor:
    """Return images (batch, channels, height, width), mirrored left to right where ``where`` (batch,) is true."""
    return torch.where(send(where, x.device)[:, None, None, None], x.flip(-1), x)


def draw_mirrored(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Return for each of so many images whether it is mirrored (count,): half of them are."""
    return torch.rand(count, generator=generator) < 0.5


def to_grayscale(x: Tensor) -> Tensor:
    """Return the lightness (batch, 1, height, width) of images (batch, 3, height, width), as torchvision weights it."""
    luma = torch.stack([x.new_full((1, 1), weight) for weight in TORCHVISION_LUMA])  # a copy would wait for a GPU
    return (x * luma).sum(1, keepdim=True)


def adjust_brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Multiply images (batch, 3, height, width) in [0, 1] by factors (batch, 1, 1, 1), clamped to [0, 1]."""
    return (x * factor).clamp(0, 1)


def adjust_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Blend images with their mean gray: factor 0 is gray, 1 the image; shapes as :func:`adjust_brightness`."""
    return (x * factor + (1 - factor) * to_grayscale(x).mean((1, 2, 3), keepdim=True)).clamp(0, 1)


def adjust_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Blend each pixel with its gray: factor 0 is gray, 1 the image; shapes as :func:`adjust_brightness`."""
    return (x * factor + (1 - factor) * to_grayscale(x)).clamp(0, 1)


ADJUSTMENTS = (adjust_brightness, adjust_contrast, adjust_saturation)


def color_jitter(x: Tensor, strength: float) -> Tensor:
    """Return jittered images (batch, 3, height, width) in [-1, 1].

    As torchvision's v2.ColorJitter without hue, with factors uniform in [1 - strength, 1 + strength].
    """
    if not strength:
        return x
    x = (x + 1) / 2
    for change in torch.randperm(len(ADJUSTMENTS)).tolist():
        factor = torch.empty(len(x), 1, 1, 1).uniform_(max(0.0, 1 - strength), 1 + strength)
        x = ADJUSTMENTS[change](x, send(factor, x.device).to(x))
    return 2 * x - 1


def random_view(x: Tensor, min_area: float, strength: float, hflip: bool) -> Tensor:
    """Return a random view of each image.

    Parameters
    ----------
    x
        Images (batch, 3, size, size) in [-1, 1].
    min_area
        Smallest fraction of the area that a crop keeps, in (0, 1]; 0.08 is torchvision's, 1 crops nothing.
    strength
        Strength of the changes of brightness, contrast and saturation; 0 changes nothing.
    hflip
        Mirror half of the images; characters do not survive it.

    Returns
    -------
    Tensor
        (batch, 3, size, size) in [-1, 1].
    """
    x = crop(x, sample_boxes(len(x), x.shape[-1], min_area)) if min_area < 1 else x
    x = color_jitter(x, strength)
    return flip(x, draw_mirrored(len(x))) if hflip else x


MIN_CROP_AREA, JITTER_STRENGTH = 0.3, 0.4  # of photographs: least area of a crop, strength of color changes
GRAY_FRACTION = 0.3  # of photographs without color


def photo_view(x: Tensor) -> Tensor:
    """Return a random view of each photograph (batch, 3, size, size) in [-1, 1]: crop, mirror, colors, some in gray."""
    x = random_view(x, MIN_CROP_AREA, JITTER_STRENGTH, hflip=True)
    colorless = send(torch.rand(len(x)) < GRAY_FRACTION, x.device)[:, None, None, None]
    return torch.where(colorless, to_grayscale(x), x)
