"""Networks for 32 x 32 color digits, each a feature extractor G (``features``) and a classifier F (``head``).

**Source**: ``McdNet`` is the SVHN -> MNIST network of Saito et al., Maximum Classifier Discrepancy, CVPR 2018, after
its published code. ``SmallNet`` is ours, sized for two CPU cores.

**Departures** of ``McdNet``: (1) the head leaves out the layers that the authors define and never call, so it has
6,318,090 parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SmallNet(nn.Module):
    """Three strided convolutions to ``width`` features, and a two-layer F; about 30 ms a step of 128 on two cores.

    Parameters
    ----------
    width
        Dimension of the feature space.
    classes
        Number of classes.
    """

    def __init__(self, width: int = 128, classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(  # (batch, 3, 32, 32)
            nn.Conv2d(3, 32, 5, 2, 2, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),  # (batch, 32, 16, 16)
            nn.Conv2d(32, 64, 5, 2, 2, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),  # (batch, 64, 8, 8)
            nn.Conv2d(64, 128, 3, 2, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),  # (batch, 128, 4, 4)
            nn.Flatten(),
            nn.Linear(128 * 4 * 4, width, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(),  # (batch, width)
        )
        self.head = nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, classes))
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, classes) of images (batch, 3, 32, 32)."""
        logits: Tensor = self.head(self.features(x))
        return logits


class McdNet(nn.Module):
    """The digit network of the MCD paper: G has 25,487,808 parameters, F 6,318,090.

    Parameters
    ----------
    classes
        Number of classes.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(  # (batch, 3, 32, 32)
            nn.Conv2d(3, 64, 5, padding=2),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),  # (batch, 64, 16, 16)
            nn.Conv2d(64, 64, 5, padding=2),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),  # (batch, 64, 8, 8)
            nn.Conv2d(64, 128, 5, padding=2),
            nn.BatchNorm2d(128),
            nn.ReLU(),  # (batch, 128, 8, 8)
            nn.Flatten(),
            nn.Linear(128 * 8 * 8, 3072),
            nn.BatchNorm1d(3072),
            nn.ReLU(),
            nn.Dropout(0.5),  # (batch, 3072)
        )
        self.head = nn.Sequential(nn.Linear(3072, 2048), nn.BatchNorm1d(2048), nn.ReLU(), nn.Linear(2048, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, classes) of images (batch, 3, 32, 32)."""
        logits: Tensor = self.head(self.features(x))
        return logits
