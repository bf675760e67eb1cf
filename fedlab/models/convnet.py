"""A convolutional network small enough for a CPU: four strided convolutions and global average pooling."""

from __future__ import annotations

from torch import Tensor, nn

from fedlab.models.norm_layers import GlobalAvgPool, norm_layer

GROWTH = (1, 2, 4, 8)


class ConvNet(nn.Module):
    """A classifier with 8 * width features of images of any size from 16 pixels, and a linear head.

    Parameters
    ----------
    classes
        Number of classes.
    kind
        "group" or "batch", see ``fedlab.models.norm_layers``.
    width
        Channels of the first convolution, a multiple of 8; each later one has twice as many.
    """

    def __init__(self, classes: int, kind: str = "group", width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for channels in (width * growth for growth in GROWTH):  # each halves the height and the width
            size = 5 if before == 3 else 3
            layers += [
                nn.Conv2d(before, channels, size, 2, size // 2, bias=False),
                norm_layer(kind, channels),
                nn.ReLU(inplace=True),
            ]
            before = channels
        self.features = nn.Sequential(*layers, GlobalAvgPool())  # (batch, 8 * width)
        self.head = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, classes) of images (batch, 3, size, size)."""
        logits: Tensor = self.head(self.features(x))
        return logits
