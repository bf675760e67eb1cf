"""Conformal p-values of log-likelihoods, and weights made from them.

**Source**: Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005.
"""

from __future__ import annotations

import torch
from torch import Tensor


def conformal_p_value(log_prob: Tensor, reference: Tensor) -> Tensor:
    """Return the rank in (0, 1] of each value: (1 + number of references <= value) / (1 + number of references).

    Of examples from the distribution of the reference, at most a fraction p has a p-value <= p.

    Parameters
    ----------
    log_prob
        Log-likelihoods (..., examples).
    reference
        (..., references) or (references,); :func:`quantiles` of a reference may replace it.

    Returns
    -------
    Tensor
        (..., examples), float64.

    Raises
    ------
    ValueError
        When a value is NaN, or the reference is empty.
    """
    if log_prob.isnan().any() or reference.isnan().any():
        raise ValueError("a log-likelihood is NaN; check the features it was taken of")
    if reference.shape[-1] == 0:
        raise ValueError("a p-value needs at least one reference log-likelihood")
    return p_value_of_sorted(log_prob, reference.double().sort(-1).values)


def p_value_of_sorted(log_prob: Tensor, reference: Tensor) -> Tensor:
    """Return :func:`conformal_p_value` by a reference that is sorted and float64, without a check of the values.

    A check would let a training step wait for a GPU. Values (..., examples) that are NaN have a p-value of 1.
    """
    boundaries = reference.expand(*log_prob.shape[:-1], -1).contiguous() if reference.ndim > 1 else reference
    below = torch.searchsorted(boundaries, log_prob.double().contiguous(), right=True)
    return (1 + below).double() / (1 + reference.shape[-1])


def mean_normalized(weights: Tensor) -> Tensor:
    """Return weights (..., examples) divided by their mean, so that weighting does not change the size of a step."""
    return weights / weights.mean(-1, keepdim=True).clamp_min(1e-6)


def quantiles(log_prob: Tensor, count: int) -> Tensor:
    """Return order statistics (..., count), sorted, that replace log-likelihoods (..., examples) as a reference.

    P-values differ by at most 1 / count.

    Raises
    ------
    ValueError
        When ``count`` is below 1 or above the number of examples.
    """
    examples = log_prob.shape[-1]
    if not 1 <= count <= examples:
        raise ValueError(f"cannot summarize {examples} log-likelihoods by {count}; ask for 1 to {examples}")
    ranks = torch.arange(1, count + 1, dtype=torch.float64) * (examples + 1) / (count + 1)
    return log_prob.double().sort(-1).values[..., ranks.round().long() - 1]
