"""ResNet-10, the backbone of cross-domain few-shot papers: one simple block in each of four stages, 512 features.

**Source**: Guo et al., A Broader Study of Cross-Domain Few-Shot Learning, ECCV 2020; STARTUP (Phoo and Hariharan,
ICLR 2021). Weights are drawn as in their code: normal with variance 2 / (kernel area * output channels).

**Departures**: (1) ``kind="group"`` replaces batch norm for federations.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn.functional import pad

from fedlab.models.norm_layers import GlobalAvgPool, norm_layer

CHANNELS = (64, 128, 256, 512)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, by default a 1x1 convolution where the number of channels changes."""

    def __init__(self, before: int, channels: int, stride: int, kind: str, around: nn.Module | None = None) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, channels, 3, stride, 1, bias=False),
            norm_layer(kind, channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            norm_layer(kind, channels),
        )
        self.around = around or (
            nn.Identity()
            if before == channels
            else nn.Sequential(nn.Conv2d(before, channels, 1, stride, bias=False), norm_layer(kind, channels))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, channels, height / stride, width / stride) of (batch, before, height, width)."""
        out: Tensor = (self.body(x) + self.around(x)).relu()
        return out


class PaddedShortcut(nn.Module):
    """A shortcut without parameters: every ``stride``-th pixel, and zeros as ``added`` new channels."""

    def __init__(self, added: int, stride: int) -> None:
        super().__init__()
        self.added, self.stride = added, stride

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, channels + added, height / stride, width / stride) of (batch, channels, height, width)."""
        return pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added))


def init_convolutions(model: nn.Module) -> None:
    """Draw the weights of all convolutions: normal with variance 2 / (kernel area * output channels)."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            area = layer.kernel_size[0] * layer.kernel_size[1]
            nn.init.normal_(layer.weight, 0.0, math.sqrt(2 / (area * layer.out_channels)))


class ResNet10(nn.Module):
    """A backbone of 4,905,792 parameters for any image size from 32 pixels, and a linear head.

    Parameters
    ----------
    classes
        Number of classes.
    kind
        "batch" as published, or "group".
    """

    def __init__(self, classes: int, kind: str = "batch") -> None:
        super().__init__()
        stem = [
            nn.Conv2d(3, 64, 7, 2, 3, bias=False),
            norm_layer(kind, 64),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),  # (batch, 64, size / 4, size / 4)
        ]
        before = (64, *CHANNELS[:-1])
        blocks = [
            BasicBlock(few, many, 1 if few == many else 2, kind) for few, many in zip(before, CHANNELS, strict=True)
        ]
        self.features = nn.Sequential(*stem, *blocks, GlobalAvgPool())  # (batch, 512)
        self.head = nn.Linear(CHANNELS[-1], classes)
        init_convolutions(self.features)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, classes) of images (batch, 3, size, size)."""
        logits: Tensor = self.head(self.features(x))
        return logits
