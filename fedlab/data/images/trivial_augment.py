"""TrivialAugment: each image gets one change, of a kind and of a strength that are drawn uniformly; nothing to tune.

Images are grouped by kind, so that a batch takes one operation for each kind. Kinds and strengths are drawn on the CPU,
and pixels are computed where the images are.

**Source**: Müller and Hutter, TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation, ICCV 2021, with the
wide ranges; kinds, ranges and their 31 strengths are those of torchvision's v2.TrivialAugmentWide.

**Departure**: changed pixels are not rounded to bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from fedlab.data.images.views import adjust_brightness, adjust_contrast, adjust_saturation
from fedlab.data.pinned import send_together

STRENGTHS = 31  # from 0 to the largest
MAX_FACTOR = 0.99  # of shears, and of changes of color
MAX_SHIFT = 32.0  # pixels
MAX_ANGLE = 135.0  # degrees
MAX_BITS = 6  # fewer than the 8 of a byte
SIGNED_STRENGTHS = 2 * STRENGTHS - 1
SPARE_DEVIATIONS = 7  # of the size of a group
NUMBERS = ("rows", "back", "matrices", "strength")  # of a batch, see `changed`


def trivial_augment(x: Tensor) -> Tensor:
    """Return each image (batch, 3, size, size) in [-1, 1], whose pixels were bytes, after one random change."""
    return changed(x, **send_together(draw_changes(len(x), x.shape[-1]), x.device))


def draw_changes(
    count: int, size: int, generator: torch.Generator | None = None, fixed: bool = False
) -> dict[str, Tensor]:
    """Return what :func:`changed` takes, for so many images of ``size`` pixels a side, from a generator.

    Parameters
    ----------
    fixed
        Groups have the sizes of :func:`group_sizes`, whatever is drawn; else those that are needed, which takes less
        than half of the time on a CPU.
    """
    kind = torch.randint(KINDS, (count,), generator=generator)
    number = torch.randint(STRENGTHS, (count,), generator=generator)
    number *= 1 - 2 * torch.randint(2, (count,), generator=generator)
    group = (kind - len(MOVES) + 1).clamp_(min=0)  # all moves are one
    counts = group.bincount(minlength=len(CHANGES) + 1).tolist()
    sizes = group_sizes(count) if fixed else (counts[0], *[max(counts[1:])] * len(CHANGES))
    if any(own > most for own, most in zip(counts, sizes, strict=True)):  # less often than one batch in a million
        sizes = (count,) * len(sizes)
    begins = [sum(sizes[:place]) - sum(counts[:place]) for place in range(len(sizes))]  # less the images before
    order = group.argsort(stable=True)
    places = torch.tensor(begins)[group[order]] + torch.arange(count)
    rows = torch.zeros(sum(sizes), dtype=torch.long).scatter_(0, places, order)
    row_of_table = kind * SIGNED_STRENGTHS + (number + STRENGTHS - 1)
    return {
        "rows": rows,
        "back": torch.empty_like(order).scatter_(0, order, places),
        "matrices": move_table(size)[row_of_table[rows[: sizes[0]]]],
        "strength": number / (STRENGTHS - 1),
    }


@lru_cache(maxsize=64)
def group_sizes(count: int) -> tuple[int, ...]:
    """Return how many of so many images may move, and may have each of the other changes (1 + changes).

    Seven standard deviations more than one expects: with fixed shapes, a batch can be part of a CUDA graph.
    """

    def most(share: float) -> int:
        return min(count, math.ceil(count * share + SPARE_DEVIATIONS * math.sqrt(count * share * (1 - share))))

    return most(len(MOVES) / KINDS), *(most(1 / KINDS) for _ in CHANGES)


def changed(x: Tensor, rows: Tensor, back: Tensor, matrices: Tensor, strength: Tensor) -> Tensor:
    """Return images (batch, 3, size, size) in [-1, 1] after one change each; no shape depends on values.

    Parameters
    ----------
    rows
        Images of each group, one group after another: those that move, those of each other change. Groups are filled up
        with images whose results nobody reads.
    back
        Place of each image (batch,) among these.
    matrices
        Of the images that move (images, 2, 3), see :func:`move`.
    strength
        Of each image (batch,), from -1 to 1.
    """
    pixels, values = (x[rows] + 1) / 2, strength[rows][:, None, None, None]
    of_each = (each[len(matrices) :].tensor_split(len(CHANGES)) for each in (pixels, values))
    results = [change(part, value) for change, part, value in zip(CHANGES.values(), *of_each, strict=True)]
    return 2 * torch.cat([move(pixels[: len(matrices)], matrices), *results])[back] - 1


def shear(strength: Tensor, size: int) -> Tensor:
    """Return the matrices (images, 2, 3) of shears along rows; the upper edge stays."""
    slope = MAX_FACTOR * strength
    return _matrix(1, slope, slope / 2, 0, 1, 0)


def shift(strength: Tensor, size: int) -> Tensor:
    """Return the matrices (images, 2, 3) of shifts along rows, by whole pixels."""
    return _matrix(1, 0, -(MAX_SHIFT * strength).trunc(), 0, 1, 0)


def rotation(strength: Tensor, size: int) -> Tensor:
    """Return the matrices (images, 2, 3) of rotations about the center of images of ``size`` pixels a side."""
    angle, center = torch.deg2rad(MAX_ANGLE * strength), (size - 1) / 2
    cosine, sine = angle.cos(), angle.sin()
    return _matrix(cosine, -sine, center * (1 - cosine + sine), sine, cosine, center * (1 - sine - cosine))


def _matrix(*numbers: Tensor | float) -> Tensor:
    shape = next(number.shape for number in numbers if isinstance(number, Tensor))
    rows = [number if isinstance(number, Tensor) else torch.full(shape, float(number)) for number in numbers]
    return torch.stack(rows, 1).view(-1, 2, 3)


def _along_columns(matrices: Callable[[Tensor, int], Tensor]) -> Callable[[Tensor, int], Tensor]:
    return lambda strength, size: matrices(strength, size)[:, [1, 0]][:, :, [1, 0, 2]]


MOVES: Mapping[str, Callable[[Tensor, int], Tensor]] = {
    "Identity": lambda strength, size: shift(0 * strength, size),
    "ShearX": shear,
    "ShearY": _along_columns(shear),
    "TranslateX": shift,
    "TranslateY": _along_columns(shift),
    "Rotate": rotation,
}


@lru_cache(maxsize=8)
def move_table(size: int) -> Tensor:
    """Return the matrices (moves * strengths of both signs, 2, 3) by which images of ``size`` pixels a side move.

    They map a pixel's (column, row, 1) to the place that its value comes from. Strengths are signed fractions of the
    largest move, from -1 to 1; those of one move follow one another. Other kinds of changes have rows, too, which
    nobody reads.
    """
    strength = torch.arange(1 - STRENGTHS, STRENGTHS) / (STRENGTHS - 1)
    table = torch.zeros(KINDS, SIGNED_STRENGTHS, 2, 3)
    for row, matrices in enumerate(MOVES.values()):
        table[row] = matrices(strength, size)
    return table.flatten(0, 1)


def move(x: Tensor, matrices: Tensor) -> Tensor:
    """Return images (images, channels, size, size), each pixel from the nearest one of its place, black from outside.

    Parameters
    ----------
    matrices
        See :func:`move_table`.
    """
    size = x.shape[-1]
    position = torch.arange(size, device=x.device, dtype=matrices.dtype)
    steps = matrices[:, :, 0, None, None] * position + matrices[:, :, 1, None, None] * position[:, None]
    column, row = (steps + matrices[:, :, 2, None, None]).round().unbind(1)  # (images, size, size) each
    inside = (column >= 0) & (column < size) & (row >= 0) & (row < size)
    place = (row * size + column).where(inside, 0).long().flatten(1)[:, None].expand(-1, x.shape[1], -1)
    return x.flatten(2).gather(2, place).view_as(x) * inside[:, None]


def _factor(adjust: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, strength: adjust(x, 1 + MAX_FACTOR * strength)


def adjust_sharpness(x: Tensor, factor: Tensor) -> Tensor:
    """Blend images (images, 3, size, size) in [0, 1] with smoothed ones: factor 0 is smooth, 1 the image."""
    smooth = x.clone()
    smooth[:, :, 1:-1, 1:-1] = (9 * avg_pool2d(x, 3, 1) + 4 * x[:, :, 1:-1, 1:-1]) / 13
    return (x * factor + (1 - factor) * smooth).clamp(0, 1)


def posterize(x: Tensor, strength: Tensor) -> Tensor:
    """Keep 8 to 2 bits of each byte of images (images, 3, size, size) in [0, 1]; strengths (images, 1, 1, 1)."""
    step = 2 ** (MAX_BITS * strength.abs()).round()
    return (255 * x).round().div(step, rounding_mode="floor") * step / 255


def solarize(x: Tensor, strength: Tensor) -> Tensor:
    """Invert pixels that are at least as bright as a threshold, 1 to 0; shapes as :func:`posterize`."""
    return torch.where((255 * x).round() >= 255 * (1 - strength.abs()), 1 - x, x)


def autocontrast(x: Tensor, strength: Tensor) -> Tensor:
    """Stretch each channel to [0, 1], but not one of a single value; shapes as :func:`posterize`, any strength."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return torch.where(high > low, (x - low) / (high - low).where(high > low, 1), x)


def equalize(x: Tensor, strength: Tensor) -> Tensor:
    """Map each byte of a channel to the fraction of pixels below it; shapes as :func:`posterize`, any strength."""
    values = (255 * x).round().flatten(2)
    ranked = values.sort(2).values
    brightest = values.shape[2] - torch.searchsorted(ranked, ranked[:, :, -1:].contiguous())
    step = (values.shape[2] - brightest) // 255
    below = torch.searchsorted(ranked, values)
    mapped = ((below + step // 2) // step.clamp(min=1)).clamp(max=255) / 255
    return torch.where(step > 0, mapped, values / 255).view_as(x)


CHANGES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Brightness": _factor(adjust_brightness),
    "Color": _factor(adjust_saturation),
    "Contrast": _factor(adjust_contrast),
    "Sharpness": _factor(adjust_sharpness),
    "Posterize": posterize,
    "Solarize": solarize,
    "AutoContrast": autocontrast,
    "Equalize": equalize,
}
KINDS = len(MOVES) + len(CHANGES)
