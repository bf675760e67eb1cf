"""The perceptron of the first federated experiments: hidden layers of 200 units with ReLU, split as all models here.

**Source**: the "2NN" of McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data,
AISTATS 2017, section 3: 199,210 parameters for gray images of 28 x 28 pixels.

**Departures**: none; images here have three channels and 32 pixels, which is 656,810 parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

HIDDEN = (200, 200)


class MLP(nn.Module):
    """Fully connected layers with ReLU as ``features``, and a linear ``head``.

    Parameters
    ----------
    classes
        Number of classes.
    inputs
        Numbers of one example, for instance 3 * 32 * 32.
    hidden
        Units of each hidden layer; the last is the dimension of the features.
    """

    def __init__(self, classes: int, inputs: int, hidden: Sequence[int] = HIDDEN) -> None:
        super().__init__()
        layers = [layer for pair in pairwise((inputs, *hidden)) for layer in (nn.Linear(*pair), nn.ReLU(inplace=True))]
        self.features = nn.Sequential(nn.Flatten(), *layers)  # (batch, hidden[-1])
        self.head = nn.Linear(hidden[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, classes) of examples (batch, ...) with ``inputs`` numbers each."""
        logits: Tensor = self.head(self.features(x))
        return logits
