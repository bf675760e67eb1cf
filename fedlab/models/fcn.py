"""A small fully convolutional network for street views: a pixel is an example.

G (``features``) maps images to rows, one for each cell of a grid of half the image's height and width; F (``head``)
maps rows to logits. Both are 2-d, as with networks of whole images, so that a strategy that knows G and F works on
pixels without knowing it.

**Source**: the dilated middle follows Yu and Koltun, Multi-Scale Context Aggregation by Dilated Convolutions, ICLR
2016; that fine and coarse maps meet before the classifier, Long et al., Fully Convolutional Networks, CVPR 2015.

**Departures**: (1) ours, sized for two CPU cores, and trained from nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

STRIDE = 2  # pixels of the image a side of a row's cell


def conv_bn_relu(before: int, after: int, stride: int = 1, dilation: int = 1, size: int = 3) -> nn.Sequential:
    """A convolution that keeps height and width but for its stride, a batch norm and a ReLU."""
    padding = dilation * (size // 2)
    return nn.Sequential(
        nn.Conv2d(before, after, size, stride, padding, dilation, bias=False), nn.BatchNorm2d(after), nn.ReLU()
    )


class Context(nn.Module):
    """Dilated convolutions one after another, each added to what it was given."""

    def __init__(self, channels: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(conv_bn_relu(channels, channels, dilation=dilation) for dilation in dilations)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to the same."""
        for layer in self.layers:
            x = x + layer(x)
        return x


class FlattenPixels(nn.Module):
    """Maps (batch, width, height, width of the image) to rows, image by image, line by line."""

    def forward(self, maps: Tensor) -> Tensor:
        """(batch, width, h, w) to (batch * h * w, width)."""
        return maps.permute(0, 2, 3, 1).flatten(0, 2)


class Pyramid(nn.Module):
    """Fine features at half the image's size, beside coarse ones that see most of the image."""

    def __init__(self, fine: int, coarse: int) -> None:
        super().__init__()
        self.fine = conv_bn_relu(3, fine, stride=STRIDE)
        self.coarse = nn.Sequential(conv_bn_relu(fine, coarse, stride=2), Context(coarse, (1, 2, 4, 8)))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 3, height, width) to (batch, fine + coarse, height / 2, width / 2)."""
        fine = self.fine(x)
        coarse = interpolate(self.coarse(fine), fine.shape[-2:], mode="bilinear", align_corners=False)
        return torch.cat([fine, coarse], 1)


class FcnNet(nn.Module):
    """``width`` features for every second pixel of every second line, then a two-layer F.

    Parameters
    ----------
    classes
        Number of classes.
    width
        Dimension of the feature space.
    fine, coarse
        Channels at a half and at a quarter of the image's size.
    """

    def __init__(self, classes: int, width: int = 48, fine: int = 24, coarse: int = 48) -> None:
        super().__init__()
        self.features = nn.Sequential(Pyramid(fine, coarse), conv_bn_relu(fine + coarse, width, size=1), FlattenPixels())
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes))
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, 3, height, width), both even, to logits (batch * height / 2 * width / 2, classes)."""
        logits: Tensor = self.head(self.features(x))
        return logits
