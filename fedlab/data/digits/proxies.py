"""Proxy targets: test images of MNIST under four kinds of shift, for tuning on targets whose labels may be seen.

An option chosen by a target's test labels makes that target's score worthless. A proxy's labels are the source's own:
tune on ``proxy_*`` as often as you like, then run once on the real targets. One caution: MNIST-M's test set is made
from the same digits, so a proxy shares their handwriting and labels with it, though not one image.

=======  ======================================================  ==================================================
kind     change of a digit                                       domain shift that it stands for
=======  ======================================================  ==================================================
texture  absolute difference to a random color texture           digits blended into photographs (mnist_m)
lowres   bent, cropped, stretched to the frame, shown in 8x8     coarse scans (optdigits)
tight    the same in 12x12, nearer to the border                 size-normalized scans (usps)
color    moved, other stroke width, colored, with neighbors      printed and photographed digits (synthdigits, svhn)
=======  ======================================================  ==================================================

**Source**: ours; "texture" after MNIST-M (Ganin & Lempitsky, ICML 2015, arXiv 1409.7495, section 4).
**Departures**: smooth noise in place of photographs; colors are drawn so that a person can read nearly every digit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate, max_pool2d, pad

from fedlab.data.digits.augment import random_affine
from fedlab.data.digits.domains import SIZE, Part
from fedlab.data.pixels import LUMA
from fedlab.errors import DataError, suggest
from fedlab.seeds import seeded

MIN_CONTRAST = 0.3  # of lightness in [0, 1], between stroke and ground of "color"
STREAMS = {"color": "colour"}  # names of random streams where they differ from the kind: they decide the images
MIN_ASPECT = 0.5  # of the box that "lowres" and "tight" stretch: a 1 as wide as it is high is no 1


def make_proxy(images: NDArray[np.uint8], kind: str, seed: int) -> NDArray[np.uint8]:
    """Return the same digits under one kind of shift; equal arguments give equal bits, on any number of threads.

    Parameters
    ----------
    images
        uint8 (N, 28, 28) or (N, 32, 32), white on black, as MNIST has them.
    kind
        A key of ``KINDS``.
    seed
        Seed of the shifts; the ambient random streams are left alone.

    Returns
    -------
    NDArray
        uint8 (N, 32, 32, 3), in the order given.

    Raises
    ------
    DataError
        For an unknown kind, or images of another shape or type.
    """
    if kind not in KINDS:
        raise DataError(f"no proxy {kind!r}; {suggest(kind, KINDS)}")
    if images.dtype != np.uint8 or images.shape[1:] not in ((28, 28), (SIZE, SIZE)) or not len(images):
        raise DataError(f"a proxy is made from uint8 (N > 0, 28, 28) or (N, 32, 32), got {images.dtype} {images.shape}")
    ink = torch.from_numpy(images)[:, None].float() / 255
    with seeded("proxy", STREAMS.get(kind, kind), seed):
        x = KINDS[kind](pad(ink, [(SIZE - ink.shape[-1]) // 2] * 4))
    return (x.clamp(0, 1) * 255).round().byte().expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()


def part_rows(count: int, part: Part) -> range:
    """Return the rows of ``count`` source images that become one part: the first half to train, the others to test."""
    return range(count // 2) if part == "train" else range(count // 2, count)


# Each kind maps ink, (N, 1, 32, 32) in [0, 1], to images (N, 1 or 3, 32, 32), clamped to [0, 1] afterwards.


def _texture(ink: Tensor) -> Tensor:
    count = len(ink)
    noise = torch.zeros(count, 3, SIZE, SIZE)
    for cells, weight in ((2, 1.0), (4, 0.8), (8, 0.6), (16, 0.5), (32, 0.3)):
        grid = 0.8 * torch.randn(count, 1, cells, cells) + 0.4 * torch.randn(count, 3, cells, cells)
        noise += interpolate(weight * _uniform(0, 1, count) * grid, (SIZE, SIZE), mode="bilinear")
    noise *= _uniform(0.05, 0.2, count) / noise.std((1, 2, 3), keepdim=True)
    level = 0.6 * _uniform(0.1, 0.9, count, 3) + 0.3 * _uniform(0, 1, count)
    level += torch.where(level < 0.5, -0.07, 0.07)  # on middle gray, |texture - digit| would not show the digit
    return ((noise + level).clamp(0, 1) - _bend(ink, 1.0)).abs()


def _lowres(ink: Tensor) -> Tensor:
    return 1.1 * _coarse(_stretch(_bend(_slant(ink), 0.8), margin=2), 8)


def _tight(ink: Tensor) -> Tensor:
    return 1.2 * _coarse(_stretch(_bend(_slant(ink), 0.8), margin=1), 12)


def _color(ink: Tensor) -> Tensor:
    count = len(ink)
    # Neighbors, other images of the batch: so far off that no more than their edge is seen.
    right, left = pad(ink.roll(1, 0), [19, -19, 0, 0]), pad(ink.roll(-1, 0), [-19, 19, 0, 0])
    ink = random_affine(ink - 1, degrees=15, shear=0.3, scale=(0.6, 1.25), shift=0.15) + 1
    width, side = _uniform(0, 1, count), _uniform(0, 1, count)
    thin = -max_pool2d(-pad(ink, [0, 1, 0, 1]), 2, 1)
    ink = torch.where(width < 0.45, max_pool2d(ink, 3, 1, 1), torch.where(width < 0.6, thin, ink))
    ink = torch.maximum(_bend(ink, 1.0), torch.where(side < 0.2, left, right) * (side < 0.4))

    ground, strokes = torch.rand(count, 1, 3), torch.rand(count, 16, 3)
    contrast = ((strokes - ground) * torch.tensor(LUMA)).sum(2).abs()  # (N, 16)
    pick = contrast.clamp(max=MIN_CONTRAST).argmax(1)  # the first that stands out enough, or else the best
    stroke = strokes[torch.arange(count), pick][..., None, None]  # (N, 3, 1, 1)
    ground = ground[:, 0, :, None, None]
    return ground + (stroke - ground) * ink + 0.04 * torch.randn(count, 3, SIZE, SIZE)


KINDS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "texture": _texture,
    "lowres": _lowres,
    "tight": _tight,
    "color": _color,
}


def _uniform(low: float, high: float, count: int, channels: int = 1) -> Tensor:
    """Return one number for each image and channel, (count, channels, 1, 1)."""
    return low + (high - low) * torch.rand(count, channels, 1, 1)


def _slant(ink: Tensor) -> Tensor:
    return random_affine(ink - 1, degrees=8, shear=0.2, scale=(0.9, 1.1), shift=0.05) + 1


def _bend(ink: Tensor, pixels: float) -> Tensor:
    """Apply a smooth random displacement, of about ``pixels`` at the knots of a 6 x 6 grid."""
    knots = torch.randn(len(ink), 2, 6, 6) * (2 * pixels / SIZE)
    shift = interpolate(knots, (SIZE, SIZE), mode="bicubic").permute(0, 2, 3, 1)  # (N, 32, 32, 2)
    still = affine_grid(torch.eye(2, 3).expand(len(ink), 2, 3), list(ink.shape), align_corners=False)
    return grid_sample(ink, still + shift, align_corners=False)


def _stretch(ink: Tensor, margin: int) -> Tensor:
    """Stretch each digit's bounding box to the frame less ``margin`` pixels, a box as narrow as a 1 only in part."""
    seen = torch.stack([(ink[:, 0] > 0.2).any(1), (ink[:, 0] > 0.2).any(2)], 1)  # (N, 2, 32): columns, rows with ink
    low = torch.where(seen, torch.arange(SIZE), SIZE).amin(2)
    high = torch.where(seen, torch.arange(1, SIZE + 1), 0).amax(2)
    center, span = (low + high) / SIZE - 1, (high - low) / SIZE  # (N, 2), in half image widths
    span = torch.maximum(span, MIN_ASPECT * span.flip(1)) / (1 - 2 * margin / SIZE)
    grid = affine_grid(torch.cat([torch.diag_embed(span), center[..., None]], 2), list(ink.shape), align_corners=False)
    return grid_sample(ink, grid, align_corners=False)


def _coarse(x: Tensor, cells: int) -> Tensor:
    """Reduce the image to ``cells`` x ``cells`` numbers and resize it back bilinearly."""
    return interpolate(interpolate(x, (cells, cells), mode="area"), (SIZE, SIZE), mode="bilinear")
