"""Random textures of labeled images: shapes stay, colors and local patterns do not, so networks learn shapes.

**Source**: RandConv (Xu et al., Robust and Generalizable Visual Representation Learning via Random Convolutions, ICLR
2021), its mixing variant; Pro-RandConv (Choi et al., Progressive Random Convolutions for Single Domain Generalization,
CVPR 2023).

**Departures**: (1) views only: no consistency loss between several views of an image. (2) Pro-RandConv without
deformable offsets and without smoothing of the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from fedlab.data.dataset import ArrayDataset, Batch
from fedlab.data.pinned import send

Texture = Literal["off", "randconv", "pro_randconv"]
KERNELS = (1, 3, 5, 7)
MAX_PASSES = 10
AFFINE_STD = 0.5  # of scale and shift after each pass
EPSILON = 1e-5


def rand_conv(x: Tensor) -> Tensor:
    """Return a * conv(x) + (1 - a) * x, with one random kernel and one a for the whole batch.

    The kernel's size k is drawn from 1, 3, 5, 7, its weights from N(0, 1 / (3 k^2)), a from U(0, 1).

    Parameters
    ----------
    x
        Images (batch, 3, height, width) in [-1, 1].

    Returns
    -------
    Tensor
        Images of the same shape, of about the same scale.
    """
    size = KERNELS[int(torch.randint(len(KERNELS), ()))]
    kernel = torch.randn(3, 3, size, size) / (3 * size**2) ** 0.5
    share = torch.rand(())
    share = send(share, x.device)
    return share * conv2d(x, send(kernel, x.device).to(x), padding=size // 2) + (1 - share) * x


def pro_rand_conv(x: Tensor) -> Tensor:
    """Return images after one random 3x3 convolution that is applied 1 to 10 times.

    After each pass every channel of an image is standardized, scaled and shifted by numbers of N(0, 1/4), and bounded
    by tanh.

    Parameters
    ----------
    x
        Images (batch, 3, height, width) in [-1, 1].

    Returns
    -------
    Tensor
        Images of the same shape, in [-1, 1].
    """
    passes = 1 + int(torch.randint(MAX_PASSES, ()))
    kernel = send(torch.randn(3, 3, 3, 3) / 27**0.5, x.device).to(x)
    scale, shift = send(AFFINE_STD * torch.randn(2, 3, 1, 1), x.device).to(x)
    for _ in range(passes):
        x = conv2d(x, kernel, padding=1)
        variance, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
        x = (scale * (x - mean) / (variance + EPSILON).sqrt() + shift).tanh()
    return x


TEXTURES: Mapping[str, Callable[[Tensor], Tensor]] = {"randconv": rand_conv, "pro_randconv": pro_rand_conv}


def randomize_texture(kind: str, x: Tensor) -> Tensor:
    """Return images (batch, 3, height, width) with a random texture; ``kind`` "off" leaves them as they are."""
    return TEXTURES[kind](x) if kind in TEXTURES else x


def textured(data: ArrayDataset, kind: str) -> ArrayDataset:
    """Return a data set whose images ``x`` (batch, 3, height, width) get a random texture each time they are read.

    Parameters
    ----------
    data
        A set whose transform gives images in [-1, 1].
    kind
        A name in ``TEXTURES``; "off" returns the set itself.
    """
    if kind not in TEXTURES:
        return data
    read = data.transform or (lambda batch: batch)

    def view(batch: Batch) -> Batch:
        batch = read(batch)
        return {**batch, "x": randomize_texture(kind, batch["x"])}

    return type(data)(data.columns, view, data.host_only)
