"""MLP-Mixer: patches, then layers that mix tokens and channels by turns, then a mean; no convolution, no attention.

**Source**: Tolstikhin et al., MLP-Mixer: An all-MLP Architecture for Vision, NeurIPS 2021, section 2 and table 1.

**Departures**: (1) weights of linear layers are drawn by torch's default rule rather than Flax's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn


class Shape(NamedTuple):
    """One column of table 1: patch size in pixels, width C, layers, and the widths D_S and D_C of the two MLPs."""

    patch: int
    width: int
    depth: int
    tokens: int
    channels: int


SHAPES: Mapping[str, Shape] = {
    "S/32": Shape(32, 512, 8, 256, 2048),
    "S/16": Shape(16, 512, 8, 256, 2048),
    "B/32": Shape(32, 768, 12, 384, 3072),
    "B/16": Shape(16, 768, 12, 384, 3072),
    "L/32": Shape(32, 1024, 24, 512, 4096),
    "L/16": Shape(16, 1024, 24, 512, 4096),
    "H/14": Shape(14, 1280, 32, 640, 5120),
}


def mlp(width: int, hidden: int) -> nn.Sequential:
    """Two linear layers on the last dimension."""
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class Layer(nn.Module):
    """x + MLP over tokens, then x + MLP over channels, each behind a layer norm."""

    def __init__(self, tokens: int, shape: Shape) -> None:
        super().__init__()
        self.before_tokens = nn.LayerNorm(shape.width, eps=1e-6)
        self.mix_tokens = mlp(tokens, shape.tokens)
        self.before_channels = nn.LayerNorm(shape.width, eps=1e-6)
        self.mix_channels = mlp(shape.width, shape.channels)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width), unchanged in shape."""
        x = x + self.mix_tokens(self.before_tokens(x).transpose(1, 2)).transpose(1, 2)
        mixed: Tensor = x + self.mix_channels(self.before_channels(x))
        return mixed


class Body(nn.Module):
    """Everything before the classifier."""

    def __init__(self, size: int, shape: Shape) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, shape.width, shape.patch, shape.patch)
        self.layers = nn.Sequential(*(Layer((size // shape.patch) ** 2, shape) for _ in range(shape.depth)))
        self.norm = nn.LayerNorm(shape.width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, 3, size, size) to features (batch, width)."""
        x = self.stem(x).flatten(2).transpose(1, 2)  # (batch, tokens, width)
        pooled: Tensor = self.norm(self.layers(x)).mean(1)
        return pooled


class Mixer(nn.Module):
    """The body and a linear classifier that starts at zero.

    Parameters
    ----------
    classes
        Number of classes.
    size
        Pixels a side; the number of tokens, (size / patch)^2, is part of the weights.
    shape
        See :class:`Shape`.

    Raises
    ------
    ValueError
        When patches do not tile the image.
    """

    def __init__(self, classes: int, size: int, shape: Shape) -> None:
        super().__init__()
        if size % shape.patch:
            raise ValueError(f"images of {size} pixels cannot be cut into patches of {shape.patch}")
        self.features = Body(size, shape)
        self.head = nn.Linear(shape.width, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, 3, size, size) to logits (batch, classes)."""
        logits: Tensor = self.head(self.features(x))
        return logits
