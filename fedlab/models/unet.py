"""DDPM's U-Net: residual blocks that know the noise level, self-attention at one resolution, skip connections.

A backbone of ``fedlab/diffusion``: noisy images and levels in, a tensor like the images out.

**Source**: Ho, Jain and Abbeel, Denoising Diffusion Probabilistic Models, NeurIPS 2020, appendix B, and its released
code; 35,746,307 parameters for CIFAR-10.

**Departures**: (1) layers that start at 1e-10 there start at 0; (2) group norms have 32 groups from 128 channels on,
below one for four channels, so that narrow networks exist; (3) stride-2 convolutions pad one pixel below and on the
right, which is what the released code's "SAME" comes to; (4) "quick" folds 2 x 2 pixels into channels, as Hoogeboom et
al., Simple Diffusion, ICML 2023, section 3.3, do: most of the time of a narrow network goes to the full resolution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad, pixel_shuffle, pixel_unshuffle, silu

from fedlab.errors import ConfigError, DataError


class UNetShape(NamedTuple):
    """Base width, factor of the width at each resolution, blocks there, resolutions with attention, and dropout.

    ``patch`` x ``patch`` pixels become channels before the first layer and pixels again after the last.
    """

    width: int
    factors: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    dropout: float
    patch: int = 1


SHAPES: Mapping[str, UNetShape] = {
    "quick": UNetShape(32, (1, 2), 1, (4, 7, 8), 0.0, patch=2),
    "tiny": UNetShape(16, (1, 2, 2), 1, (7, 8), 0.0),
    "small": UNetShape(32, (1, 2, 2), 2, (14, 16), 0.0),
    "medium": UNetShape(64, (1, 2, 2), 2, (14, 16), 0.0),
    "cifar10": UNetShape(128, (1, 2, 2, 2), 2, (16,), 0.1),
}


def check_image_size(size: int, shape: UNetShape) -> None:
    """Check that a network of this shape can take images of ``size`` pixels a side.

    Raises
    ------
    ConfigError
        When the size cannot be halved as often as the shape has resolutions.
    """
    halvings = len(shape.factors) - 1
    stride = shape.patch * 2**halvings
    if size % stride:
        patches = f" after patches of {shape.patch}" if shape.patch > 1 else ""
        raise ConfigError(
            f"images of {size} pixels cannot be halved {halvings} times{patches}; this U-Net takes multiples of "
            f"{stride} pixels a side"
        )


def group_norm(channels: int) -> nn.GroupNorm:
    """Return a group norm of 32 groups, fewer for narrow layers."""
    return nn.GroupNorm(min(32, channels // 4), channels, eps=1e-6)


def linear(inputs: int, outputs: int) -> nn.Linear:
    """Return a linear layer initialized as in the paper, with zero bias."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def convolution(inputs: int, outputs: int, size: int = 3, stride: int = 1, *, zero: bool = False) -> nn.Conv2d:
    """Return a convolution that keeps the size at stride 1, initialized as in the paper or to zero, with zero bias."""
    layer = nn.Conv2d(inputs, outputs, size, stride, size // 2 if stride == 1 else 0)
    if zero:
        nn.init.zeros_(layer.weight)
    else:
        nn.init.xavier_uniform_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def level_embedding(level: Tensor, width: int) -> Tensor:
    """Return sines and cosines (batch, width) of levels (batch,), of frequencies 1 to 1e-4."""
    half = width // 2
    rates = torch.exp(torch.arange(half, device=level.device) * (-math.log(10000) / (half - 1)))
    angles = level.float()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


class ResidualBlock(nn.Module):
    """Norm, swish, convolution, plus the level; again with dropout; with a shortcut."""

    def __init__(self, inputs: int, outputs: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.conv1 = group_norm(inputs), convolution(inputs, outputs)
        self.level = linear(embedding, outputs)
        self.norm2, self.conv2 = group_norm(outputs), convolution(outputs, outputs, zero=True)
        self.dropout = nn.Dropout(dropout)
        self.shortcut = nn.Identity() if inputs == outputs else convolution(inputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Return (batch, outputs, height, width) of (batch, inputs, height, width) and (batch, embedding)."""
        h = self.conv1(silu(self.norm1(x))) + self.level(silu(embedding))[:, :, None, None]
        added: Tensor = self.shortcut(x) + self.conv2(self.dropout(silu(self.norm2(h))))
        return added


class Attention(nn.Module):
    """Self-attention of one head over all pixels, residual, with a zero initial output."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.query, self.key, self.value = (convolution(channels, channels, 1) for _ in range(3))
        self.out = convolution(channels, channels, 1, zero=True)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Return (batch, channels, height, width), unchanged in shape; the embedding is not used."""
        h = self.norm(x)
        query, key, value = (layer(h).flatten(2) for layer in (self.query, self.key, self.value))  # (batch, C, pixels)
        weights = (query.transpose(1, 2) @ key * x.shape[1] ** -0.5).softmax(
            2
        )  # fused kernels have no second derivative
        mixed = value @ weights.transpose(1, 2)
        added: Tensor = x + self.out(mixed.reshape(x.shape))
        return added


class Downsample(nn.Module):
    """Half the resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = convolution(channels, channels, 3, 2)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Return (batch, channels, height / 2, width / 2) of (batch, channels, height, width)."""
        smaller: Tensor = self.conv(pad(x, (0, 1, 0, 1)))
        return smaller


class Upsample(nn.Module):
    """Twice the resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = convolution(channels, channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Return (batch, channels, 2 height, 2 width) of (batch, channels, height, width)."""
        larger: Tensor = self.conv(interpolate(x, scale_factor=2.0, mode="nearest"))
        return larger


class Stage(nn.Sequential):
    """A sequence of layers that all take the level, or its embedding, besides the images."""

    def forward(self, x: Tensor, level: Tensor) -> Tensor:  # type: ignore[override]
        """Return (batch, channels, height, width) after all layers."""
        for layer in self:
            x = layer(x, level)
        return x


class UNet(nn.Module):
    """The noise-predicting network.

    Parameters
    ----------
    channels
        Of the images.
    size
        Pixels a side.
    shape
        See :class:`UNetShape`.

    Raises
    ------
    ConfigError
        When the size cannot be halved as often as the shape has resolutions.
    """

    def __init__(self, channels: int, size: int, shape: UNetShape) -> None:
        super().__init__()
        check_image_size(size, shape)
        self.channels, self.size, self.width, self.patch = channels, size, shape.width, shape.patch
        inside = channels * shape.patch**2
        embedding = 4 * shape.width
        self.embed = nn.Sequential(linear(shape.width, embedding), nn.SiLU(), linear(embedding, embedding))
        self.stem = convolution(inside, shape.width)

        def stage(inputs: int, outputs: int, pixels: int, tail: Sequence[nn.Module] = ()) -> Stage:
            attention = [Attention(outputs)] if pixels in shape.attention else []
            return Stage(ResidualBlock(inputs, outputs, embedding, shape.dropout), *attention, *tail)

        now, skips, pixels = shape.width, [shape.width], size // shape.patch
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for depth, factor in enumerate(shape.factors):
            for _ in range(shape.blocks):
                self.down.append(stage(now, factor * shape.width, pixels))
                now = factor * shape.width
                skips.append(now)
            if depth < len(shape.factors) - 1:
                self.down.append(Stage(Downsample(now)))
                skips.append(now)
                pixels //= 2
        first, last = (ResidualBlock(now, now, embedding, shape.dropout) for _ in range(2))
        self.middle = Stage(first, Attention(now), last)
        for depth, factor in reversed(list(enumerate(shape.factors))):
            outputs = factor * shape.width
            for block in range(shape.blocks + 1):
                tail = [Upsample(outputs)] if depth and block == shape.blocks else []
                self.up.append(stage(now + skips.pop(), outputs, pixels, tail))
                now = outputs
            pixels *= 2
        self.norm, self.out = group_norm(now), convolution(now, inside, zero=True)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """Return a tensor like the noisy images (batch, channels, size, size), at levels (batch,).

        Raises
        ------
        DataError
            For images of another shape.
        """
        expected = (self.channels, self.size, self.size)
        if x.shape[1:] != expected:
            raise DataError(f"images of shape {tuple(x.shape[1:])} came to a U-Net made for {expected}")
        embedding = self.embed(level_embedding(level, self.width))
        h = self.stem(pixel_unshuffle(x, self.patch))
        skips = [h]
        for stage in self.down:
            h = stage(h, embedding)
            skips.append(h)
        h = self.middle(h, embedding)
        for stage in self.up:
            h = stage(torch.cat([h, skips.pop()], 1), embedding)
        found = pixel_shuffle(self.out(silu(self.norm(h))), self.patch)
        return found
