"""Operations on Gaussian mixtures as wholes: merge, reduction of components, and the distance MW2.

**Source**: Runnalls, Kullback-Leibler Approach to Gaussian Mixture Reduction, 2007; MW2: Delon and Desolneux, A
Wasserstein-type distance in the space of Gaussian mixture models, 2020, arXiv 1907.05254.

**Departures**: (1) Runnalls' bound is taken within diagonal Gaussians: a merged pair keeps its variances, not its
covariances.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedlab.models.gaussian_mixture import GaussianMixture, take_rows


def merge(
    mixtures: Sequence[GaussianMixture], fractions: Sequence[float] | Tensor, components: int | None = None
) -> GaussianMixture:
    """Return the mixture of mixtures, whose density is the weighted sum of their densities.

    Parameters
    ----------
    mixtures
        Mixtures with means (..., components, dimensions); the numbers of components may differ.
    fractions
        Weight of each mixture (mixtures,), positive, of any scale.
    components
        Reduce the result to so many components; None keeps all.

    Raises
    ------
    ValueError
        When there is not one positive fraction a mixture, or fewer components than asked for.
    """
    fraction = torch.as_tensor(fractions, dtype=torch.float64)  # (mixtures,)
    if fraction.shape != (len(mixtures),) or not len(mixtures):
        raise ValueError(f"one fraction per mixture: got {fraction.numel()} fractions for {len(mixtures)} mixtures")
    if not (fraction.isfinite().all() and fraction.min() > 0):
        raise ValueError(f"fractions must be positive, got {fraction.tolist()}; leave out a mixture that has none")
    log_fractions = (fraction / fraction.sum()).log().tolist()
    log_weights = [mixture.log_weights + log for mixture, log in zip(mixtures, log_fractions, strict=True)]
    union = GaussianMixture(
        torch.cat(log_weights, -1),
        torch.cat([mixture.means for mixture in mixtures], -2),
        torch.cat([mixture.variances for mixture in mixtures], -2),
    )
    return union if components is None else reduce_components(union, components)


def reduce_components(mixture: GaussianMixture, components: int) -> GaussianMixture:
    """Return a mixture of fewer components: the cheapest pair becomes one Gaussian of its moments, again and again.

    The overall mean and variance stay. Leading dimensions are reduced independently.

    Raises
    ------
    ValueError
        When ``components`` is below 1 or above what the mixture has.
    """
    if not 1 <= components <= mixture.means.shape[-2]:
        raise ValueError(f"cannot reduce {mixture.means.shape[-2]} components to {components}")
    while mixture.means.shape[-2] > components:
        mixture = _merge_cheapest_pair(mixture)
    return mixture


def mw2_distance(a: GaussianMixture, b: GaussianMixture) -> float:
    """Return MW2: optimal transport between the components, at the squared 2-Wasserstein cost between Gaussians.

    Both are single mixtures: means (components, dimensions).

    Raises
    ------
    ValueError
        For stacked mixtures, other dimensions, or when the linear program fails.
    """
    from scipy.optimize import linprog  # slow to import, and only this needs it

    a, b = a.check().to("cpu"), b.check().to("cpu")
    if a.means.ndim != 2 or b.means.ndim != 2 or a.means.shape[-1] != b.means.shape[-1]:
        raise ValueError("the distance is between two single mixtures of the same dimensions; index a stack first")
    points = [torch.cat([mixture.means, mixture.variances.sqrt()], -1) for mixture in (a, b)]
    cost = (points[0].unsqueeze(1) - points[1]).square().sum(-1)  # (a's components, b's components)
    rows, columns = a.log_weights.softmax(-1).numpy(), b.log_weights.softmax(-1).numpy()
    leaves = np.kron(np.eye(len(rows)), np.ones(len(columns)))  # (a's components, pairs): mass leaving each
    arrives = np.kron(np.ones(len(rows)), np.eye(len(columns)))[:-1]  # the last follows from the others
    masses = np.concatenate([rows, columns[:-1]])
    plan = linprog(cost.numpy().ravel(), A_eq=np.vstack([leaves, arrives]), b_eq=masses, method="highs-ds")
    if plan.fun is None:
        raise ValueError(f"no transport plan between the mixtures: {plan.message}")
    return math.sqrt(max(plan.fun, 0.0))


def _merge_cheapest_pair(mixture: GaussianMixture) -> GaussianMixture:
    """Return the mixture with one component less, in every leading dimension."""
    means, variances, log_weights = mixture.means, mixture.variances, mixture.log_weights
    components = means.shape[-2]
    part = (log_weights.unsqueeze(-1) - log_weights.unsqueeze(-2)).sigmoid().unsqueeze(-1)  # (..., i, j, 1), i's in i+j
    gap = means.unsqueeze(-2) - means.unsqueeze(-3)  # (..., i, j, dimensions)
    merged_variances = (
        part * variances.unsqueeze(-2) + (1 - part) * variances.unsqueeze(-3) + part * (1 - part) * gap.square()
    )
    weights = log_weights.exp()
    own = weights * variances.log().sum(-1)
    both = (weights.unsqueeze(-1) + weights.unsqueeze(-2)) * merged_variances.log().sum(-1)
    cost = 0.5 * (both - own.unsqueeze(-1) - own.unsqueeze(-2))  # (..., i, j), bound on the KL divergence
    once = torch.ones(components, components, dtype=torch.bool, device=cost.device).triu(1)
    pair = cost.masked_fill(~once, math.inf).flatten(-2).argmin(-1, keepdim=True)  # (..., 1)
    i, j = pair // components, pair % components  # i < j

    mean = take_rows(part.flatten(-3, -2), pair) * (take_rows(means, i) - take_rows(means, j)) + take_rows(means, j)
    kept = torch.arange(components - 1, device=cost.device)
    kept = kept + (kept >= j)  # (..., components - 1), all but j; i stays where it was
    slot = i.unsqueeze(-1).expand_as(mean)
    log_weight = torch.logaddexp(log_weights.gather(-1, i), log_weights.gather(-1, j))
    return GaussianMixture(
        log_weights.gather(-1, kept).scatter(-1, i, log_weight),
        take_rows(means, kept).scatter(-2, slot, mean),
        take_rows(variances, kept).scatter(-2, slot, take_rows(merged_variances.flatten(-3, -2), pair)),
    )
