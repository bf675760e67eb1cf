"""Batch norm as in papers, or group norm, which keeps no statistics of data and therefore averages well.

**Source**: Wu and He, Group Normalization, ECCV 2018. That batch norm is what breaks federated averaging on unlike
clients: Hsieh et al., The Non-IID Data Quagmire, ICML 2020.
"""

from __future__ import annotations

from torch import Tensor, nn

GROUPS = 8


def norm_layer(kind: str, channels: int) -> nn.Module:
    """Return a normalization layer for (batch, channels, height, width); ``kind`` is "batch" or "group"."""
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.GroupNorm(GROUPS, channels)


class GlobalAvgPool(nn.Module):
    """The mean over height and width; adaptive pooling to one pixel has no deterministic gradient on a GPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, channels) of (batch, channels, height, width)."""
        return x.mean((2, 3))
