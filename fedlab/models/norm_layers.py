"""Batch norm as papers have it, or group norm, which keeps no statistics of anybody's data and so averages well.

**Source**: Wu and He, Group Normalization, ECCV 2018. That batch norm is what breaks federated averaging on unlike
clients: Hsieh et al., The Non-IID Data Quagmire, ICML 2020.
"""

from __future__ import annotations

from torch import Tensor, nn

GROUPS = 8


def norm_layer(kind: str, channels: int) -> nn.Module:
    """A layer that normalizes (batch, channels, height, width); ``kind`` is "batch" or "group"."""
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.GroupNorm(GROUPS, channels)


class GlobalAvgPool(nn.Module):
    """The mean over height and width; adaptive pooling to one pixel has no deterministic gradient on a GPU."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to (batch, channels)."""
        return x.mean((2, 3))
