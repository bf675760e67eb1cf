"""A small fully convolutional network for street views, in which every pixel is an example.

G (``features``) maps images to rows, one for each cell of a grid of half the image's height and width; F (``head``)
maps rows to logits. Both are 2-d, as with networks of whole images, so that a strategy that uses G and F works on
pixels without a change.

**Source**: the dilated middle follows Yu and Koltun, Multi-Scale Context Aggregation by Dilated Convolutions, ICLR
2016; that fine and coarse maps meet before the classifier, Long et al., Fully Convolutional Networks, CVPR 2015.

**Departures**: (1) the network is ours, sized for two CPU cores, and trained from scratch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

STRIDE = 2  # pixels of the image a side of a row's cell


def conv_bn_relu(before: int, after: int, stride: int = 1, dilation: int = 1, size: int = 3) -> nn.Sequential:
    """Return a convolution that keeps height and width up to its stride, a batch norm and a ReLU."""
    padding = dilation * (size // 2)
    return nn.Sequential(
        nn.Conv2d(before, after, size, stride, padding, dilation, bias=False), nn.BatchNorm2d(after), nn.ReLU()
    )


class Context(nn.Module):
    """Dilated convolutions in sequence, each with a residual connection."""

    def __init__(self, channels: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(conv_bn_relu(channels, channels, dilation=dilation) for dilation in dilations)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, channels, height, width), unchanged in shape."""
        for layer in self.layers:
            x = x + layer(x)
        return x


class FlattenPixels(nn.Module):
    """Flatten maps (batch, width, h, w) to one row a pixel, image by image, line by line."""

    def forward(self, maps: Tensor) -> Tensor:
        """Return (batch * h * w, width) of maps (batch, width, h, w)."""
        return maps.permute(0, 2, 3, 1).flatten(0, 2)


class Pyramid(nn.Module):
    """Fine features at half the image's size, concatenated with coarse ones of a large receptive field."""

    def __init__(self, fine: int, coarse: int) -> None:
        super().__init__()
        self.fine = conv_bn_relu(3, fine, stride=STRIDE)
        self.coarse = nn.Sequential(conv_bn_relu(fine, coarse, stride=2), Context(coarse, (1, 2, 4, 8)))

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, fine + coarse, height / 2, width / 2) of images (batch, 3, height, width)."""
        fine = self.fine(x)
        coarse = interpolate(self.coarse(fine), fine.shape[-2:], mode="bilinear", align_corners=False)
        return torch.cat([fine, coarse], 1)


class FcnNet(nn.Module):
    """A network with ``width`` features for every second pixel of every second line, and a two-layer F.

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
        self.features = nn.Sequential(
            Pyramid(fine, coarse), conv_bn_relu(fine + coarse, width, size=1), FlattenPixels()
        )
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes))
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch * height / 2 * width / 2, classes) of images (batch, 3, height, width) of even sizes."""
        logits: Tensor = self.head(self.features(x))
        return logits
