"""CutMix: a rectangle of each image is replaced by that of another, and the loss counts both labels by area.

A training set learns less by heart when no two of its images are the same twice. All images of a batch are mixed at
once, with parameters from torch's current random stream.

**Source**: Yun et al., CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features, ICCV
2019, with alpha 1; rectangles are drawn and cut at the edges as torchvision's v2.CutMix does.

**Departures**: (1) each image has a rectangle of its own, and is mixed or not by itself; in the paper a batch shares
both. (2) The other image is the one before it in the batch, which is as random as a permutation where batches are
drawn at random.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedlab.data.dataset import Batch
from fedlab.data.pinned import send

PASTED_LABEL, PASTED_SHARE = "y_pasted", "pasted_share"
CUTMIX_NUMBERS = 4  # uniform numbers of an image


def cutmix(batch: Batch, probability: float) -> Batch:
    """Return a batch whose images have rectangles of others, with two more columns.

    Parameters
    ----------
    batch
        Images ``x`` (batch, channels, size, size) and labels ``y`` (batch,).
    probability
        Probability that an image is mixed.

    Returns
    -------
    Batch
        The same columns, and ``y_pasted`` (batch,), the label of the other image, and ``pasted_share`` (batch,), the
        fraction of the area that it covers, in [0, 1]; 0 where an image is as it was.
    """
    return pasted(batch, send(torch.rand(CUTMIX_NUMBERS, len(batch["x"])), batch["x"].device), probability)


def pasted(batch: Batch, uniform: Tensor, probability: float) -> Batch:
    """Return :func:`cutmix` of a batch with numbers (4, batch) in [0, 1) that are where the images are."""
    x, y, size = batch["x"], batch["y"], batch["x"].shape[-1]
    mixed, kept, center = uniform[0], uniform[1], uniform[2:]
    half = (size / 2 * (1 - kept).sqrt()).floor() * (mixed < probability)
    middle = (center * size).floor()
    start, end = (middle - half).clamp(min=0), (middle + half).clamp(max=size)  # rows and columns, (2, count)
    share = (end - start).prod(0) / size**2
    (top, left), (bottom, right) = start, end
    position = torch.arange(size, device=x.device)
    rows = (position >= top[:, None]) & (position < bottom[:, None])
    columns = (position >= left[:, None]) & (position < right[:, None])
    inside = (rows[:, :, None] & columns[:, None])[:, None]
    return {
        **batch,
        "x": torch.where(inside, x.roll(1, 0), x),
        PASTED_LABEL: y.roll(1, 0),
        PASTED_SHARE: share,
    }
