"""Comparison of the clients' heads with each other, before the server's features are trained against them."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from statistics import median
from typing import TypeVar

import torch
from torch import Tensor, nn

from fedlab.losses.discrepancy import discrepancy
from fedlab.strategies.agreement import FEWEST
from fedlab.strategies.protocol import load

AGREEMENT_ROWS = 256  # source examples on which heads are compared
MAX_DISTANCE = 3.0  # times the median distance from F_g
NEGLIGIBLE = 0.1  # distance, of at most 2, up to which a head is like F_g whatever the others are

Head = TypeVar("Head")


@torch.no_grad()
def head_distances(head: nn.Module, heads: Mapping[int, Mapping[str, Tensor]], z: Tensor) -> dict[int, float]:
    """Return the mean discrepancy of each head from F_g on features z (rows, width), by partition; from 0 to 2."""
    device = next(head.parameters()).device
    p, local = head(z.to(device)).softmax(1), deepcopy(head).eval()
    return {
        partition: float(discrepancy(p, load(local, state, device)(z.to(device)).softmax(1)).mean())
        for partition, state in heads.items()
    }


def agreeing(heads: Mapping[int, Head], distances: Mapping[int, float]) -> tuple[dict[int, Head], dict[int, float]]:
    """Return the heads that are used, and of the others by how much they are farther away than the median.

    Of fewer than four clients all are used.
    """
    usual = max(median(distances.values()), NEGLIGIBLE / MAX_DISTANCE)
    far = {partition: distance / usual for partition, distance in distances.items() if distance > MAX_DISTANCE * usual}
    if len(heads) < FEWEST or len(far) * 2 >= len(heads):
        return dict(heads), {}
    return {partition: state for partition, state in heads.items() if partition not in far}, far
