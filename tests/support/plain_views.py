"""Random views as they were written first, each number drawn where it is used: what views in two parts must equal."""

from __future__ import annotations

import math

import torch
from torch.nn.functional import affine_grid, grid_sample

from fedlab.data.images.trivial_augment import CHANGES, MOVES, STRENGTHS, move


def uniform(low, high, *shape):
    return low + (high - low) * torch.rand(*shape)


def random_affine(x, degrees=12.0, shear=0.2, scale=(0.8, 1.15), shift=0.08, padding="ground"):
    count = len(x)
    angle = uniform(-degrees, degrees, count) * math.pi / 180
    slant = uniform(-shear, shear, count)
    wide, high = 1 / uniform(*scale, count), 1 / uniform(*scale, count)
    cos, sin = torch.cos(angle), torch.sin(angle)
    rows = (
        torch.stack([cos * wide, (slant - sin) * high, uniform(-shift, shift, count)], 1),
        torch.stack([sin * wide, cos * high, uniform(-shift, shift, count)], 1),
    )
    grid = affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    if padding == "border":
        return grid_sample(x, grid, align_corners=False, padding_mode="border")
    return grid_sample(x + 1, grid, align_corners=False) - 1


def random_recolor(x, plain=0.35, gray=0.2):
    count = len(x)
    mask = (x + 1) / 2
    ground, stroke = uniform(-1, 1, count, 3, 1, 1), uniform(-1, 1, count, 3, 1, 1)
    kind = torch.rand(count, 1, 1, 1)
    is_gray = (kind >= plain) & (kind < plain + gray)
    ground = torch.where(is_gray, ground[:, :1], ground)
    stroke = torch.where(is_gray, stroke[:, :1], stroke)
    return torch.where(kind < plain, x, ground * (1 - mask) + stroke * mask)


def trivial_augment(x):
    """Groups have the sizes that are drawn."""
    kind = torch.randint(len(MOVES) + len(CHANGES), (len(x),))
    strength = torch.randint(STRENGTHS, (len(x),)) / (STRENGTHS - 1) * (1 - 2 * torch.randint(2, (len(x),)))
    order = kind.argsort(stable=True)
    kind, strength = kind[order], strength[order]
    counts = kind.bincount(minlength=len(MOVES) + len(CHANGES)).tolist()
    moved = sum(counts[: len(MOVES)])
    of_moves = zip(MOVES.values(), strength[:moved].split(counts[: len(MOVES)]), strict=True)
    matrices = torch.cat([matrices(own, x.shape[-1]) for matrices, own in of_moves])
    pixels = (x[order] + 1) / 2
    parts, values = (tensor[moved:].split(counts[len(MOVES) :]) for tensor in (pixels, strength[:, None, None, None]))
    changed = [change(part, value) for change, part, value in zip(CHANGES.values(), parts, values, strict=True)]
    return 2 * torch.cat([move(pixels[:moved], matrices), *changed])[order.argsort()] - 1


def padded_crop(x, padding):
    corner = torch.randint(2 * padding + 1, (2, len(x)))
    bordered = torch.nn.functional.pad(x, (padding,) * 4, value=-1.0)
    size = x.shape[-1]
    return torch.stack(
        [one[:, row : row + size, column : column + size] for one, row, column in zip(bordered, *corner, strict=True)]
    )


def cutmix(x, y, probability):
    size = x.shape[-1]
    mixed, kept, *center = torch.rand(4, len(x))
    half = (size / 2 * (1 - kept).sqrt()).floor() * (mixed < probability)
    middle = (torch.stack(center) * size).floor()
    start, end = (middle - half).clamp(min=0).long(), (middle + half).clamp(max=size).long()
    out = x.clone()
    for number, ((top, left), (bottom, right)) in enumerate(zip(start.T.tolist(), end.T.tolist(), strict=True)):
        out[number, :, top:bottom, left:right] = x[number - 1, :, top:bottom, left:right]
    return out, y.roll(1, 0), (end - start).prod(0) / size**2
