"""Convolutions of many models at once as one batched matrix product, for GPUs.

``vmap`` turns a convolution whose weights differ from model to model into a grouped one, for which cuDNN has no quick
deterministic kernels: a step of a thousand small networks takes five times as long (``docs/how-to/gpu.md``). Here the
pixels under each place of a kernel are gathered by slices, and one product takes all of them (im2col). A CPU is no
quicker with it.

**Source**: Chellapilla, Puri & Simard 2006, High performance convolutional neural networks for document processing.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.overrides import TorchFunctionMode

DEVICES = {"cuda"}  # types of devices where products are quicker


def convolutions_on(device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which mapped convolutions are computed on a device."""
    return ConvolutionsAsProducts() if device.type in DEVICES else nullcontext()


class ConvolutionsAsProducts(TorchFunctionMode):
    """Computes two-dimensional convolutions of one group and no dilation by :func:`convolution_as_product`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.conv2d and (given := _understood(*args, **(kwargs or {}))):
            return convolution_as_product(*given)
        return func(*args, **(kwargs or {}))


Pair = tuple[int, int]


def _understood(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple[Tensor, Tensor, Tensor | None, Pair, Pair] | None:
    """Return the arguments of a convolution that can be a product; None for any other."""
    if x.dim() != 4 or groups != 1 or _pair(dilation) != (1, 1) or isinstance(padding, str):
        return None
    return x, weight, bias, _pair(stride), _pair(padding)


def _pair(value: Any) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def convolution_as_product(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair) -> Tensor:
    """Return the convolution of x (batch, channels, height, width) by weights (out, channels, kernel, kernel).

    Parameters
    ----------
    bias
        One number for each output channel (out,), or None.
    stride, padding
        By height and width.
    """
    out, kernel = len(weight), weight.shape[2:]
    (down, across), (rows, columns) = stride, padding
    x = pad(x, (columns, columns, rows, rows)) if rows or columns else x
    height, width = ((size - part) // step + 1 for size, part, step in zip(x.shape[2:], kernel, stride, strict=True))
    places = [
        x[:, :, i : i + down * (height - 1) + 1 : down, j : j + across * (width - 1) + 1 : across]
        for i in range(kernel[0])
        for j in range(kernel[1])
    ]
    pixels = torch.stack(places, 2).flatten(3)  # (batch, channels, places, height * width)
    found = torch.einsum("ock,bckp->bop", weight.flatten(2), pixels).reshape(len(x), out, height, width)
    return found if bias is None else found + bias[:, None, None]
