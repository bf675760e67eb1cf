"""Residual networks for images of 32 pixels: ResNet-20, and ResNet-18 with a stem for small images.

**Source**: He et al., Deep Residual Learning for Image Recognition, CVPR 2016. ResNet-20 is that of section 4.2: three
stages of three blocks with 16, 32 and 64 channels, and shortcuts without parameters, which take every second pixel and
pad new channels with zeros (0.27 million parameters, table 6). ResNet-18 is that of table 1 with a first convolution of
3 x 3 and stride 1 and without max pooling, as usual for CIFAR (11.2 million; github.com/kuangliu/pytorch-cifar).

**Departures**: (1) ``kind="group"`` replaces batch norm, which breaks federated averaging on unlike clients (Hsieh et
al., The Non-IID Data Quagmire, ICML 2020); the number of parameters is the same.
"""

from __future__ import annotations

from torch import Tensor, nn

from fedlab.models.norm_layers import GlobalAvgPool, norm_layer
from fedlab.models.resnet10 import CHANNELS, BasicBlock, PaddedShortcut, init_convolutions

STAGES_20 = (16, 32, 64)
BLOCKS_20, BLOCKS_18 = 3, 2  # blocks of a stage


class CifarResNet(nn.Module):
    """A 3 x 3 convolution, stages of residual blocks of which each but the first halves the image, and a linear head.

    Parameters
    ----------
    classes
        Number of classes.
    channels
        Channels of each stage; the last is the dimension of the features.
    blocks
        Blocks of a stage.
    kind
        "group" or "batch", see ``fedlab.models.norm_layers``.
    padded
        True for shortcuts without parameters; else a 1 x 1 convolution where the shape changes.
    """

    def __init__(self, classes: int, channels: tuple[int, ...], blocks: int, kind: str, padded: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(3, channels[0], 3, 1, 1, bias=False),
            norm_layer(kind, channels[0]),
            nn.ReLU(inplace=True),
        ]
        before = channels[0]
        for stage, width in enumerate(channels):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                around = PaddedShortcut(width - before, stride) if padded and width != before else None
                layers.append(BasicBlock(before, width, stride, kind, around))
                before = width
        self.features = nn.Sequential(*layers, GlobalAvgPool())  # (batch, channels[-1])
        self.head = nn.Linear(before, classes)
        init_convolutions(self.features)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, classes) of images (batch, 3, size, size)."""
        logits: Tensor = self.head(self.features(x))
        return logits


def resnet20(classes: int, kind: str = "group") -> CifarResNet:
    """Return the ResNet-20 of CIFAR-10, with 64 features."""
    return CifarResNet(classes, STAGES_20, BLOCKS_20, kind, padded=True)


def resnet18(classes: int, kind: str = "group") -> CifarResNet:
    """Return the ResNet-18 for small images, with 512 features."""
    return CifarResNet(classes, CHANNELS, BLOCKS_18, kind, padded=False)
