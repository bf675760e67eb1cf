"""Pixel values: bytes to [-1, 1], the range of every image model here, and weights of red, green and blue."""

from __future__ import annotations

from torch import Tensor

from fedlab.data.dataset import Batch

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601: lightness of red, green and blue
TORCHVISION_LUMA = (0.2989, 0.587, 0.114)  # as torchvision's rgb_to_grayscale rounds them; sums to 0.9999


def bytes_to_float(x: Tensor) -> Tensor:
    """Return uint8 values of any shape as float32, 0 to 255 mapped linearly to -1 to 1."""
    return x.float() / 127.5 - 1


def to_float(batch: Batch) -> Batch:
    """Return a batch with its column ``x`` of bytes as float32 in [-1, 1].

    All other columns are copied, since a slice of a stored column would share its memory.
    """
    return {name: bytes_to_float(column) if name == "x" else column.clone() for name, column in batch.items()}


def to_rgb_float(batch: Batch) -> Batch:
    """Return a batch as :func:`to_float` does, images (batch, 1 or 3, height, width) with three channels."""
    batch = to_float(batch)
    return {**batch, "x": batch["x"].expand(-1, 3, -1, -1)}
