"""Which class a client's predictor takes for which, on its own test data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedlab.data.dataset import ArrayDataset
from fedlab.report.pixel_rows import probabilities

Array = NDArray[Any]

BATCH = 100  # inputs a pass: those of a segmentation are large
CLASSES = 64  # in a confusion matrix, at most
AGREEMENT = 0.005  # between confusions and what the client reported: another device may round otherwise
NOTHING = np.zeros((0, 0), np.int64)


@torch.no_grad()
def confusion(predictor: nn.Module, data: ArrayDataset) -> Array:
    """Counts (true, predicted) of examples or pixels; nothing without labels, or where outputs are no classes of them.

    A label outside the model's classes says that a pixel has none.
    """
    if not {"x", "y"} <= data.columns.keys():
        return NOTHING
    total = NOTHING
    for batch in data.batches(BATCH):
        p, y = probabilities(predictor(batch["x"]), batch["y"]), batch["y"]
        if p is None or p.shape[1] > CLASSES or y.is_floating_point():
            return NOTHING
        classes = p.shape[1]
        known = (y >= 0) & (y < classes)
        pairs = y[known].long() * classes + p.argmax(1)[known]
        counts = torch.bincount(pairs, minlength=classes**2).view(classes, classes).numpy()
        total = total + counts if len(total) else counts
    return total


def shares(counts: Array) -> dict[str, float]:
    """Accuracy, and the mean intersection over union of the classes that are there."""
    right, true, predicted = np.diag(counts), counts.sum(1), counts.sum(0)
    present, union = true > 0, true + predicted - right
    return {
        "accuracy": float(right.sum()) / max(int(counts.sum()), 1),
        "miou": float(np.mean(right[present] / union[present])) if present.any() else 0.0,
    }


def agreement(counts: Array, reported: Mapping[str, float]) -> bool:
    """Whether confusions give a share that the client reported: its accuracy, or its mean intersection over union."""
    return any(
        abs(value - share) <= AGREEMENT
        for kind, share in shares(counts).items()
        for name, value in reported.items()
        if name.startswith(kind)
    )
