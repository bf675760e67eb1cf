"""Random augmentations of scenes and their label maps, drawn for each image of a batch from torch's random stream.

Geometry changes image and labels together, light changes the image alone. Every strategy gets the same: an augmentation
that only one of two methods sees makes their comparison unfair.

**Source**: mirroring and random scales are standard for street views (Chen et al., DeepLab, PAMI 2018).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from fedlab.data.pinned import send


def random_resized_crop(x: Tensor, y: Tensor, min_scale: float = 0.7) -> tuple[Tensor, Tensor]:
    """Return a random window of each scene, resized to the scene's size, half of them mirrored.

    Parameters
    ----------
    x
        Images (batch, 3, height, width), resampled bilinearly.
    y
        Labels (batch, height, width), integers, each that of the nearest pixel.
    min_scale
        Smallest fraction of height and width that a window shows, in (0, 1]; 1 only mirrors.

    Returns
    -------
    Tensor, Tensor
        Images and labels of the given shapes.
    """
    count = len(x)
    scale = torch.empty(count).uniform_(min_scale, 1)
    across, down = (2 * torch.rand(count) - 1) * (1 - scale), (2 * torch.rand(count) - 1) * (1 - scale)
    mirror = 1.0 - 2.0 * (torch.rand(count) < 0.5)
    zero = torch.zeros(count)
    windows = torch.stack([scale * mirror, zero, across, zero, scale, down], 1).view(count, 2, 3)
    grid = affine_grid(windows, [count, 1, *x.shape[-2:]], align_corners=False)
    grid = send(grid, x.device).to(x)
    images = grid_sample(x, grid, padding_mode="border", align_corners=False)
    labels = grid_sample(y[:, None].to(x.dtype), grid, mode="nearest", padding_mode="border", align_corners=False)
    return images, labels[:, 0].round().to(y.dtype)


def random_gamma(x: Tensor, gamma: float = 2.0, gain: float = 0.4, tint: float = 0.15) -> Tensor:
    """Change the light of each image: x -> gain * x ** gamma, and a tint of each color, on the scale [0, 1].

    Parameters
    ----------
    x
        Images (batch, 3, height, width) in [-1, 1].
    gamma
        Largest exponent, the smallest is its inverse, uniform in the logarithm; 1 changes nothing.
    gain, tint
        Half-widths of the ranges of factors around 1, of a whole image and of each of its colors.

    Returns
    -------
    Tensor
        Images of the same shape, in [-1, 1].
    """
    count = len(x)
    exponent = torch.empty(count, 1, 1, 1).uniform_(-1, 1).mul(math.log(gamma)).exp()
    factor = 1 + gain * (2 * torch.rand(count, 1, 1, 1) - 1)
    colors = 1 + tint * (2 * torch.rand(count, 3, 1, 1) - 1)
    unit = ((x + 1) / 2).clamp(1e-3, 1)
    return 2 * (unit ** send(exponent, x.device).to(x) * send(factor * colors, x.device).to(x)).clamp(0, 1) - 1
