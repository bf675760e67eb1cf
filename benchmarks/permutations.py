"""Fixed permutations of the pixels of an image, the same for every image and for all channels of a pixel.

**Source**: Tolstikhin et al., MLP-Mixer, NeurIPS 2021, section 3.4: ``patches`` shuffles the order of the patches and
the pixels within each of them by one shared permutation; ``pixels`` is one permutation of the whole image.
``within patches`` is the first without shuffling the order of the patches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedlab.errors import ConfigError, suggest
from fedlab.seeds import seeded

KINDS = ("plain", "within patches", "patches", "pixels")


def pixel_permutation(kind: str, size: int, patch: int, seed: int) -> Tensor:
    """Return the source position of each pixel, (size * size,), row by row.

    Parameters
    ----------
    kind
        One of ``KINDS``.
    size, patch
        Pixels a side of the image and of a patch; patches tile the image.
    seed
        Seed of the permutation, independent of a run's seed.

    Raises
    ------
    ConfigError
        For an unknown kind, or patches that do not tile the image.
    """
    if kind not in KINDS:
        raise ConfigError(f"no arrangement of pixels {kind!r}; {suggest(kind, KINDS)}")
    if size % patch:
        raise ConfigError(f"images of {size} pixels cannot be cut into patches of {patch}; take a multiple of it")
    side, pixels = size // patch, torch.arange(size * size)
    with seeded("arrangement", kind, seed):
        within, patches = torch.randperm(patch * patch), torch.randperm(side * side)
        if kind == "pixels":
            return torch.randperm(size * size)
    if kind == "plain":
        return pixels
    grid = pixels.view(side, patch, side, patch).transpose(1, 2).reshape(side * side, patch * patch)[:, within]
    if kind == "patches":
        grid = grid[patches]
    return grid.view(side, side, patch, patch).transpose(1, 2).reshape(-1)


def permute_pixels(x: Tensor, order: Tensor) -> Tensor:
    """Return images (batch, channels, size, size), of any type, with pixels permuted by ``order`` (size * size,)."""
    return x.flatten(2)[:, :, order.to(x.device)].view(x.shape)
