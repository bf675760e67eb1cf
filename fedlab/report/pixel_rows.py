"""Rows that stand for cells of an image: where a model gives a row of features or scores for each few pixels.

Such a model gives (batch * h * w, width), row by row of each image, for labels (batch, height, width); a cell covers
height / h by width / w pixels, and both are the same number.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def grid(rows: int, labels: Tensor) -> tuple[int, int] | None:
    """Return the cells (h, w) of each image, from the number of all rows; None where rows are no such cells."""
    if labels.ndim != 3 or rows % len(labels) or not rows:
        return None
    batch, height, width = labels.shape
    stride = max(1, round(math.sqrt(height * width * batch / rows)))
    h, w = height // stride, width // stride
    return (h, w) if batch * h * w == rows else None


def labels_of_rows(rows: int, labels: Tensor) -> Tensor | None:
    """Return the label (rows,) at the middle of each cell, or of each example; None where the two do not fit."""
    if labels.numel() == rows:
        return labels.flatten()
    cells = grid(rows, labels)
    if cells is None:
        return None
    y, x = (
        ((torch.arange(count) + 0.5) * size / count).long() for count, size in zip(cells, labels.shape[1:], strict=True)
    )
    return labels[:, y][:, :, x].flatten()


def probabilities(scores: Tensor, labels: Tensor) -> Tensor | None:
    """Return probabilities (batch, classes, ...) of the labels' own shape; rows of cells are enlarged bilinearly.

    ``scores`` are logits or log-probabilities, which softmax leaves what they are; None where shapes do not fit.
    """
    if scores.ndim < 2:
        return None
    p = scores.softmax(1)
    if scores.shape[:1] + scores.shape[2:] == labels.shape:
        return p
    cells = grid(len(scores), labels) if scores.ndim == 2 else None
    if cells is None:
        return None
    maps = p.view(len(labels), *cells, -1).permute(0, 3, 1, 2)
    return interpolate(maps, labels.shape[1:], mode="bilinear", align_corners=False)
