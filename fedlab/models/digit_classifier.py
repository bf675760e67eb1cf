"""A small classifier of gray digits, for features in which generated digits are compared, and for their labels.

Its weights ship with the package, see ``fedlab/evaluation/digit_labels.py``.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import interpolate

CANVAS, SIZE, CLASSES, FEATURES = 32, 28, 10, 64


class DigitClassifier(nn.Module):
    """Three convolutions, average pooling, 64 features, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        for channels, size in ((32, 5), (64, 3), (128, 3)):  # each halves the height and the width
            layers += [
                nn.Conv2d(before, channels, size, 2, size // 2, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
            ]
            before = channels
        pool = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * before, FEATURES), nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*layers, *pool)
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, 10) of gray images (batch, 1, 28, 28) in [-1, 1]."""
        logits: Tensor = self.head(self.features(x))
        return logits


def preprocess(x: Tensor) -> Tensor:
    """Return the classifier's input, gray (batch, 1, 28, 28), of images (batch, 1 or 3, size, size) in [-1, 1].

    Images of 28 pixels keep their size; others are resized to 32 if need be, and cropped to the middle 28.
    """
    gray = x.mean(1, keepdim=True)
    if gray.shape[-1] == SIZE:
        return gray
    if gray.shape[-1] != CANVAS:
        gray = interpolate(gray, (CANVAS, CANVAS), mode="bilinear", antialias=True)
    margin = (CANVAS - SIZE) // 2
    return gray[..., margin:-margin, margin:-margin]
