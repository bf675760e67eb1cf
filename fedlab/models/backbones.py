"""Classifiers on a pre-trained backbone, each a feature extractor G (``features``) and a classifier F (``head``).

A backbone is a sequence of stages. Its first stages may be frozen; their output is then the input ``x`` of the model,
which holds the remaining stages only: with all of them frozen, a standardization and a linear head.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice, pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class Standardize(nn.Module):
    """Pixels in [-1, 1] as a backbone was trained on them: (byte - mean) / std of each channel.

    Parameters
    ----------
    mean, std
        Of each channel, in bytes (0 to 255).
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        # no parameters: constants of the network, which no message needs to carry
        self.register_buffer("scale", 127.5 / torch.tensor(std)[:, None, None], persistent=False)
        shift = (127.5 - torch.tensor(mean)) / torch.tensor(std)
        self.register_buffer("shift", shift[:, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, 3, height, width) of images (batch, 3, height, width) in [-1, 1]."""
        out: Tensor = x * self.get_buffer("scale") + self.get_buffer("shift")
        return out


class BackboneClassifier(nn.Module):
    """The stages of a backbone that are trained, a standardization of its features, and a linear head.

    Parameters
    ----------
    stages
        From inputs ``x`` to features (batch, width); empty where x are features already.
    width
        Number of features.
    classes
        Number of classes.
    bottleneck
        Width of a linear layer with a batch norm between features and head, as in SHOT (Liang et al., ICML 2020): the
        part of G that is trained above a frozen backbone. 0: none.
    """

    def __init__(self, stages: Sequence[nn.Module], width: int, classes: int, bottleneck: int = 0) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.BatchNorm1d(width, affine=False)]  # (batch, width)
        if bottleneck:
            layers += [nn.Linear(width, bottleneck, bias=False), nn.BatchNorm1d(bottleneck)]
        self.features = nn.Sequential(*stages, *layers)
        self.head = nn.Linear(bottleneck or width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, classes) of inputs (batch, ...)."""
        logits: Tensor = self.head(self.features(x))
        return logits


def split_stages(stages: Sequence[nn.Module], trained: int) -> tuple[nn.Sequential, list[nn.Module]]:
    """Return the frozen stages as one module in evaluation mode, and the last ``trained`` stages."""
    rest = iter(stages)
    frozen = nn.Sequential(*islice(rest, len(stages) - trained)).requires_grad_(False).eval()
    return frozen, list(rest)


def fold_batch_norms(module: nn.Module) -> nn.Module:
    """Fold each batch norm of frozen stages into the convolution before it; what comes out stays the same.

    Returns
    -------
    Module
        The module itself, in evaluation mode, with convolutions in the layout that a CPU computes fastest.
    """
    for child in module.children():
        fold_batch_norms(child)
    if isinstance(module, nn.Sequential):
        for (name, first), (following, second) in pairwise(list(module.named_children())):
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(first.eval(), second.eval()))
                setattr(module, following, nn.Identity())
    return module.to(memory_format=torch.channels_last).eval()
