"""The score networks of NCSN and NCSNv2: a RefineNet with dilated stages, ELU and InstanceNorm++.

A backbone of ``fedlab/diffusion``: noisy images and levels in, a tensor like the images out. With ``levels`` every norm
has weights for each of them, and the output is the score (NCSN); without, the network does not see the level, its
refining blocks have no norms and pool by the maximum, and the output is the noise (NCSNv2 divides it by sigma).

**Source**: Song and Ermon, Generative Modeling by Estimating Gradients of the Data Distribution, NeurIPS 2019, appendix
A; Improved Techniques for Training Score-Based Generative Models, NeurIPS 2020, appendix B; their released code, whose
RCU, MSF and CRP blocks are ``RCUBlock``, and ``fuse`` and ``pool`` of ``RefineBlock``.

**Departures**: (1) images come in [-1, 1] and are not rescaled inside; (2) NCSNv2's output has the sign of the noise,
as DDPM's has, and not of the score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, elu, instance_norm, interpolate, max_pool2d

from fedlab.errors import ConfigError, DataError
from fedlab.models.unet import Stage


class InstanceNormPlus(nn.Module):
    """gamma (IN(x) + alpha m) + beta, with m the channels' means normalized over channels; a set for each level.

    Instance norm alone would forget the means, and with them the brightness of the image. Without levels there is one
    set.
    """

    def __init__(self, channels: int, levels: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(max(levels, 1), 3, channels))  # gamma, alpha and beta of each level
        nn.init.normal_(self.table, 1.0, 0.02)
        with torch.no_grad():
            self.table[:, 2].zero_()
        self.conditional = levels > 0

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """Return (batch, channels, height, width), unchanged in shape; ``level`` is (batch,)."""
        row = self.table[level if self.conditional else torch.zeros_like(level)]
        gamma, alpha, beta = row[..., None, None].unbind(1)  # each (batch, channels, 1, 1)
        means = x.mean((2, 3), keepdim=True)
        means = (means - means.mean(1, keepdim=True)) / (means.var(1, keepdim=True) + 1e-5).sqrt()
        return gamma * (instance_norm(x) + alpha * means) + beta


def convolution(inputs: int, outputs: int, dilation: int = 1, *, size: int = 3, bias: bool = True) -> nn.Conv2d:
    """Return a convolution that keeps height and width."""
    return nn.Conv2d(inputs, outputs, size, padding=dilation * (size // 2), dilation=dilation, bias=bias)


class ResidualUnit(nn.Module):
    """Norm, ELU, convolution, twice, with a shortcut.

    The unit that opens a stage has a convolution as its shortcut; if the stage is not dilated, it halves the image by
    the mean of 2 x 2 pixels.
    """

    def __init__(self, inputs: int, outputs: int, levels: int, dilation: int = 1, *, opens: bool = False) -> None:
        super().__init__()
        self.norm1, self.conv1 = InstanceNormPlus(inputs, levels), convolution(inputs, inputs, dilation)
        self.norm2, self.conv2 = InstanceNormPlus(inputs, levels), convolution(inputs, outputs, dilation)
        size = 3 if dilation > 1 else 1
        self.shortcut = convolution(inputs, outputs, dilation, size=size) if opens else nn.Identity()
        self.halves = opens and dilation == 1

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """Return (batch, outputs, height, width), or half as high and wide, of (batch, inputs, height, width)."""
        h = self.conv2(elu(self.norm2(self.conv1(elu(self.norm1(x, level))), level)))
        added: Tensor = self.shortcut(x) + h
        return avg_pool2d(added, 2) if self.halves else added


class NormConv(nn.Module):
    """A norm, if any, then an activation or a pool or nothing, then a convolution."""

    def __init__(self, norm: InstanceNormPlus | None, middle: Callable[[Tensor], Tensor], conv: nn.Conv2d) -> None:
        super().__init__()
        self.norm, self.middle, self.conv = norm, middle, conv

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """Return (batch, outputs, height, width) of (batch, inputs, height, width)."""
        x = x if self.norm is None else self.norm(x, level)
        out: Tensor = self.conv(self.middle(x))
        return out


class RCUBlock(Stage):
    """Residual convolution unit: x plus two convolutions."""

    def forward(self, x: Tensor, level: Tensor) -> Tensor:  # type: ignore[override]
        """Return (batch, channels, height, width), unchanged in shape."""
        return x + super().forward(x, level)


class RefineBlock(nn.Module):
    """Refine several inputs into one.

    RCU blocks on each input, fusion at the first one's resolution, chained residual pooling, and RCU blocks again.
    """

    def __init__(self, inputs: Sequence[int], outputs: int, levels: int, *, last: bool = False) -> None:
        super().__init__()

        def unit(before: int, after: int, middle: Callable[[Tensor], Tensor], bias: bool = False) -> NormConv:
            norm = InstanceNormPlus(before, levels) if levels else None
            return NormConv(norm, middle, convolution(before, after, bias=bias))

        def adapt(channels: int, count: int) -> Stage:
            return Stage(*(RCUBlock(*(unit(channels, channels, elu) for _ in range(2))) for _ in range(count)))

        pool = partial(avg_pool2d if levels else max_pool2d, kernel_size=5, stride=1, padding=2)
        self.adapt = nn.ModuleList(adapt(channels, 2) for channels in inputs)
        fused = inputs if len(inputs) > 1 else ()
        self.fuse = nn.ModuleList(unit(channels, outputs, _same, True) for channels in fused)
        self.pool = nn.ModuleList(unit(outputs, outputs, pool) for _ in range(2))
        self.out = adapt(outputs, 3 if last else 1)

    def forward(self, inputs: Sequence[Tensor], level: Tensor) -> Tensor:
        """Return one tensor of the first input's resolution; inputs are (batch, channels, height, width)."""
        parts = [adapt(x, level) for x, adapt in zip(inputs, self.adapt, strict=True)]
        if len(self.fuse):
            parts = [fuse(x, level) for x, fuse in zip(parts, self.fuse, strict=True)]
        x = parts[0]
        for other in parts[1:]:
            x = x + interpolate(other, x.shape[2:], mode="bilinear", align_corners=True)
        x = path = elu(x)
        for pool in self.pool:
            path = pool(path, level)
            x = x + path
        refined: Tensor = self.out(x, level)
        return refined


def _same(x: Tensor) -> Tensor:
    return x


class RefineNet(nn.Module):
    """The score network.

    Parameters
    ----------
    channels, size
        Of the images, and their pixels a side.
    width
        Of the first stage; the papers have 128, and 64 for MNIST.
    levels
        Of the noise that norms know (NCSN); 0: none (NCSNv2).

    Raises
    ------
    ConfigError
        When the size is odd.
    """

    def __init__(self, channels: int, size: int, width: int, levels: int) -> None:
        super().__init__()
        if size % 2:
            raise ConfigError(f"images of {size} pixels cannot be halved; a RefineNet takes an even number a side")
        self.channels = channels
        self.stem = convolution(channels, width)
        plan = ((width, 1), (2 * width, 1), (2 * width, 2), (2 * width, 4))  # width and dilation of each stage
        self.stages = nn.ModuleList()
        now = width
        for number, (outputs, dilation) in enumerate(plan):
            opening = ResidualUnit(now, outputs, levels, dilation, opens=number > 0)
            self.stages.append(Stage(opening, ResidualUnit(outputs, outputs, levels, dilation)))
            now = outputs
        wide = 2 * width
        self.refine = nn.ModuleList(
            [
                RefineBlock((wide,), wide, levels),
                RefineBlock((wide, wide), wide, levels),
                RefineBlock((wide, wide), width, levels),
                RefineBlock((width, width), width, levels, last=True),
            ]
        )
        self.norm, self.out = InstanceNormPlus(width, levels), convolution(width, channels)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """Return a tensor like the noisy images (batch, channels, size, size), at levels (batch,).

        Raises
        ------
        DataError
            For images of another number of channels, or an odd size.
        """
        if x.shape[1] != self.channels or x.shape[2] % 2 or x.shape[3] % 2:
            raise DataError(
                f"images of shape {tuple(x.shape[1:])} came to a RefineNet for {self.channels} channels and even sizes"
            )
        h = self.stem(x)
        seen = []
        for stage in self.stages:
            h = stage(h, level)
            seen.append(h)
        refined = self.refine[0]([seen[3]], level)
        for number, refine in enumerate(list(self.refine)[1:]):
            refined = refine([seen[2 - number], refined], level)
        found: Tensor = self.out(elu(self.norm(refined, level)))
        return found
