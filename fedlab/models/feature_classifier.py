"""Models in two parts: feature extractor G (``features``) and classifier F (``head``), recognized by attribute name.

G gives one row of features for an input, or as many rows for each input of a batch, one after another: one for each
pixel, for instance. F maps rows independently of where they come from.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedlab.errors import ConfigError

PARTS = ("features", "head")


def missing_parts(model: nn.Module) -> list[str]:
    """Return the names of the parts that a model lacks."""
    return [name for name in PARTS if not isinstance(getattr(model, name, None), nn.Module)]


def check_parts(model: nn.Module, strategy: str, workload: str) -> None:
    """Check that a model is a feature extractor and a classifier.

    Raises
    ------
    ConfigError
        When it lacks ``features`` or ``head``.
    """
    if missing := missing_parts(model):
        raise ConfigError(
            f"{strategy} needs a model with .features and .head; {type(model).__name__} of workload "
            f"{workload!r} lacks {' and '.join(missing)}; use source_only, or a strategy that trains whole "
            "models, such as fedavg"
        )


def features_of(model: nn.Module) -> nn.Module:
    """Return G: inputs (batch, ...) to features (batch, width), or (batch * rows, width) with several rows an input."""
    module = model.features
    assert isinstance(module, nn.Module)
    return module


def head_of(model: nn.Module) -> nn.Module:
    """Return F: features (batch, width) to logits (batch, classes)."""
    module = model.head
    assert isinstance(module, nn.Module)
    return module


@torch.no_grad()
def probabilities(head: nn.Module, z: Tensor) -> Tensor:
    """Return class probabilities (batch, classes) of features (batch, width), in evaluation mode."""
    logits: Tensor = head.eval()(z)
    return logits.softmax(1)


def subsample_rows(z: Tensor, most: int) -> Tensor:
    """Return at most ``most`` rows of z (rows, width), drawn from torch's current random stream.

    Fewer rows are returned as they are, without a draw.
    """
    return z if len(z) <= most else z[torch.randperm(len(z))[:most].to(z.device)]


def group_rows(rows: Tensor, examples: int) -> Tensor:
    """Reshape (examples * rows, ...) to (examples, rows, ...), the length of other columns.

    One row an example is left as it is.
    """
    return rows if len(rows) == examples else rows.reshape(examples, -1, *rows.shape[1:])


class FlattenRows(nn.Module):
    """A head for features grouped by :func:`group_rows`: (batch, width) or (batch, rows, width) to rows of logits."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, z: Tensor) -> Tensor:
        """Return logits (batch, classes) or (batch * rows, classes)."""
        logits: Tensor = self.head(z.flatten(0, -2))
        return logits


class FeatureClassifier(nn.Module):
    """G and F as one model.

    Parameters
    ----------
    features
        G: inputs (batch, ...) to features (batch, width).
    head
        F: features (batch, width) to logits (batch, classes).
    """

    def __init__(self, features: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.features, self.head = features, head

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, classes) of inputs (batch, ...)."""
        logits: Tensor = self.head(self.features(x))
        return logits


class EnsembleHead(nn.Module):
    """Two heads as one: the mean of their probabilities, as log-probabilities."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, z: Tensor) -> Tensor:
        """Return log-probabilities (batch, classes) of features (batch, width)."""
        mean: Tensor = (self.first(z).softmax(1) + self.second(z).softmax(1)) / 2
        return mean.clamp_min(1e-12).log()
