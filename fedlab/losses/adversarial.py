"""Domain-adversarial loss: features from which a discriminator cannot tell the domains apart.

**Source**: Ganin et al., Domain-Adversarial Training of Neural Networks, JMLR 2016, equations 9 to 18: the
discriminator descends on its loss, the feature extractor ascends on it, in one step by a layer that reverses gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.weight * gradient, None


def gradient_reversal(z: Tensor, weight: float = 1.0) -> Tensor:
    """Return z (any shape) unchanged; on the backward pass the gradient is multiplied by ``-weight``."""
    reversed_: Tensor = _Reversed.apply(z, weight)
    return reversed_


def domain_loss(source: Tensor, target: Tensor) -> Tensor:
    """Return the mean cross-entropy of a discriminator, both domains weighted equally: a scalar, log 2 for a guess.

    Parameters
    ----------
    source, target
        Logits (batch, 1) of source and target features; large values mean target.
    """
    of_source = binary_cross_entropy_with_logits(source, torch.zeros_like(source))
    of_target = binary_cross_entropy_with_logits(target, torch.ones_like(target))
    return (of_source + of_target) / 2
