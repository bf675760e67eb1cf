"""Confusion matrices of a client's predictor on its own test data, and the metrics that can be checked by them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedlab.data.dataset import ArrayDataset
from fedlab.report.pixel_rows import probabilities
from fedlab.runs.metrics import MetricTable

Array = NDArray[Any]

BATCH = 100  # inputs a pass: those of a segmentation are large
CLASSES = 64  # in a confusion matrix, at most
AGREEMENT = 0.005  # between confusions and what the client reported: another device may round otherwise
NOTHING = np.zeros((0, 0), np.int64)


@torch.no_grad()
def confusion(predictor: nn.Module, data: ArrayDataset) -> Array:
    """Return counts (true, predicted) of examples or pixels.

    An empty array without labels, or where outputs are no classes of them. A label outside the model's classes says
    that a pixel has none.
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


def accuracy(counts: Array) -> float:
    """Return the fraction of examples whose class is predicted."""
    return float(np.trace(counts)) / max(int(counts.sum()), 1)


def mean_iou(counts: Array) -> float:
    """Return the mean intersection over union of the classes that are there."""
    right, true, predicted = np.diag(counts), counts.sum(1), counts.sum(0)
    present, union = true > 0, true + predicted - right
    return float(np.mean(right[present] / union[present])) if present.any() else 0.0


# What a declared metric may be of a confusion matrix (``Metric.confusion``).
STATISTICS: Mapping[str, Callable[[Array], float]] = {function.__name__: function for function in (accuracy, mean_iou)}


def agrees(counts: Array, reported: Mapping[str, float], table: MetricTable) -> bool:
    """Return True if a metric that the client reported is the statistic of this matrix that it is declared to be."""
    return any(
        abs(value - STATISTICS[statistic](counts)) <= AGREEMENT
        for name, value in reported.items()
        if (statistic := table.find(name).confusion) in STATISTICS
    )
