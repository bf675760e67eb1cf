"""Information maximization: predictions that are certain for each example and diverse over the batch.

**Source**: Krause et al., Discriminative Clustering by Regularized Information Maximization, NeurIPS 2010; for
adaptation without source data: Liang et al., SHOT, ICML 2020, equations 3 and 4.
"""

from __future__ import annotations

from torch import Tensor


def entropy(p: Tensor) -> Tensor:
    """Return the entropy in nats of distributions (..., classes), one number each."""
    return -(p * p.clamp_min(1e-12).log()).sum(-1)


def information_maximization(p: Tensor) -> Tensor:
    """Return mean H(p) - H(mean p) of probabilities (batch, classes), a scalar: minus the mutual information.

    Examples
    --------
    >>> import torch
    >>> round(float(information_maximization(torch.eye(2))), 4)
    -0.6931
    """
    return entropy(p).mean() - entropy(p.mean(0))
