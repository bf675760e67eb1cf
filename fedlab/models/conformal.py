"""doc"""

from __future__ import annotations

import torch
from torch import Tensor


def conformal_p_value(log_prob: Tensor, reference: Tensor) -> Tensor:
    """Rank in (0, 1] of each log-likelihood among the reference's: (1 + #{reference <= value}) / (1 + #reference).

    log_prob (..., examples), reference (..., references) or (references,) -> (..., examples). Of examples drawn as the
    reference was, at most a share p has a typicality <= p. ``quantiles`` of a reference may stand in for it.
    """
    if log_prob.isnan().any() or reference.isnan().any():
        raise ValueError("a log-likelihood is NaN; check the features it was taken of")
    if reference.shape[-1] == 0:
        raise ValueError("a p-value needs at least one reference log-likelihood")
    boundaries = reference.double().sort(-1).values
    if boundaries.ndim > 1:
        boundaries = boundaries.expand(*log_prob.shape[:-1], -1).contiguous()
    below = torch.searchsorted(boundaries, log_prob.double().contiguous(), right=True)
    return (1 + below).double() / (1 + reference.shape[-1])


def mean_normalized(weights: Tensor) -> Tensor:
    """Weights (..., examples) of mean 1 from typicalities, so that weighing does not change the size of a step."""
    return weights / weights.mean(-1, keepdim=True).clamp_min(1e-6)


def quantiles(log_prob: Tensor, count: int) -> Tensor:
    """Sorted (..., count) order statistics in place of (..., examples) log-likelihoods; typicality within 1/count."""
    examples = log_prob.shape[-1]
    if not 1 <= count <= examples:
        raise ValueError(f"cannot summarize {examples} log-likelihoods by {count}; ask for 1 to {examples}")
    ranks = torch.arange(1, count + 1, dtype=torch.float64) * (examples + 1) / (count + 1)
    return log_prob.double().sort(-1).values[..., ranks.round().long() - 1]
