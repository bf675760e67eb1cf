"""Expectation-maximization of diagonal Gaussian mixtures: batch EM, and stepwise EM on mini-batches.

Leading dimensions (several mixtures at once) are written ``...``, see :mod:`fedlab.models.gaussian_mixture`. All
arithmetic is float64. Randomness comes from torch's current CPU stream, also on a GPU, so an initialization does not
depend on the device.

Source
    EM: Dempster, Laird & Rubin 1977, as in scikit-learn's ``GaussianMixture(covariance_type="diag")``.
    Stepwise EM: Cappe & Moulines 2009, On-line EM algorithm for latent data models, arXiv 0712.4273.
    Initialization: Arthur & Vassilvitskii 2007, k-means++.

Departures
    1. The floor is *added* to every variance, as scikit-learn adds ``reg_covar``; it is not a lower clamp.
    2. An empty component keeps a weight of 2e-15 and takes the overall mean and variance (scikit-learn: the origin and
       the floor, a needle that no example ever leaves or a zero feature may fall into).
    3. The initialization draws k-means++ seeds and gives every component the same weight and the variance around the
       nearest seed (scikit-learn's k-means++: no variance but the floor).
    4. A batched fit stops when its slowest mixture has converged, so the others may take more steps than alone. (On a
       CPU it pays for small sets; thousands of examples each are as fast or faster one by one: benchmarks/mixtures.py.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from fedlab.models.gaussian_mixture import (
    GaussianMixture,
    Statistics,
    draw_indices,
    log_joint_of,
    posterior,
    power_moments,
    take_rows,
)

PSEUDO_WEIGHT = 10 * torch.finfo(torch.float64).eps  # fraction of one example that every component is given


@torch.no_grad()
def fit(
    x: Tensor,  # (..., examples, dimensions)
    components: int,
    *,
    start: GaussianMixture | None = None,  # None: `kmeans_plusplus_init`
    steps: int = 100,
    tolerance: float = 1e-3,  # nats per example; 0 takes every step
    variance_floor: float = 1e-6,
    weights: Tensor | None = None,  # (..., examples), any scale; 0 leaves a (finite) padding row out
) -> GaussianMixture:
    """Return the mixture after at most ``steps`` steps of EM; the defaults are scikit-learn's.

    Parameters
    ----------
    x
        Features (..., examples, dimensions).
    components
        Number of components, at most the number of examples.
    start
        Initial mixture; None takes :func:`kmeans_plusplus_init`.
    steps
        Largest number of steps.
    tolerance
        Stop when the mean log-likelihood gains less, in nats per example; 0 takes every step.
    variance_floor
        Added to every variance.
    weights
        Example weights (..., examples) of any scale; 0 leaves a (finite) padding row out.

    Raises
    ------
    ValueError
        When there are fewer examples than components, ``steps`` is below 1, the start has other components, or the
        features or weights are not finite.
    """
    if steps < 1:
        raise ValueError(f"a fit needs at least 1 step, got {steps}")
    if x.ndim > 1 and not 1 <= components <= x.shape[-2]:
        raise ValueError(f"cannot fit {components} components to {x.shape[-2]} examples; ask for 1 to {x.shape[-2]}")
    if start is None:
        start = kmeans_plusplus_init(x, components, variance_floor=variance_floor, weights=weights)
    if start.means.shape[-2] != components:
        raise ValueError(f"the start has {start.means.shape[-2]} components where {components} are to be fitted")
    previous = torch.tensor(-math.inf)
    path = em_iterations(x, start, variance_floor=variance_floor, weights=weights)
    for _ in range(steps):
        mixture, log_likelihood = next(path)
        if (log_likelihood - previous).abs().max() < tolerance:
            break
        previous = log_likelihood
    return mixture


@torch.no_grad()
def em_iterations(
    x: Tensor, start: GaussianMixture, *, variance_floor: float = 1e-6, weights: Tensor | None = None
) -> Iterator[tuple[GaussianMixture, Tensor]]:
    """Yield steps of EM without end: the mixture after the step, and the mean log-likelihood (...) before it.

    Parameters and errors are those of :func:`fit`.
    """
    x = _features(x, start)
    fraction = _fractions(x, weights)  # (..., examples)
    center = (fraction.unsqueeze(-2) @ x).squeeze(-2)  # (..., dimensions)
    moments = power_moments(x - center.unsqueeze(-2))  # computed once; centered, so that nothing large cancels
    mixture = start.check().translate(-center)
    while True:
        responsibilities, log_prob = posterior(log_joint_of(mixture, moments))
        mixture = m_step(_average(responsibilities, moments, fraction), variance_floor)
        yield mixture.translate(center), (fraction * log_prob).sum(-1)


@torch.no_grad()
def kmeans_plusplus_init(
    x: Tensor, components: int, *, variance_floor: float = 1e-6, weights: Tensor | None = None
) -> GaussianMixture:
    """Return the initial mixture of k-means++ seeds for features (..., examples, dimensions).

    Each seed is drawn in proportion to the squared distance from the nearest seed so far. Parameters and errors are
    those of :func:`fit`.
    """
    x = _features(x)
    fraction = _fractions(x, weights)
    seeds: list[Tensor] = []  # each (..., 1, dimensions)
    nearest = torch.ones_like(fraction)  # (..., examples), squared distance from the nearest seed
    offset = x  # (..., examples, dimensions), from the nearest seed
    for _ in range(components):
        odds = (fraction * nearest.clamp_min(1e-300)).cumsum(-1)  # all examples on seeds already: any of them
        seeds.append(take_rows(x, draw_indices(odds, 1)))
        candidate = x - seeds[-1]
        squared = candidate.square().sum(-1)
        closer = squared < nearest if len(seeds) > 1 else torch.ones_like(squared, dtype=torch.bool)
        nearest, offset = torch.where(closer, squared, nearest), torch.where(closer.unsqueeze(-1), candidate, offset)
    means = torch.cat(seeds, -2)
    variances = (fraction.unsqueeze(-2) @ offset.square() + variance_floor).expand_as(means)
    return GaussianMixture(torch.full_like(means[..., 0], -math.log(components)), means, variances)


@torch.no_grad()
def e_step(
    mixture: GaussianMixture, x: Tensor, weights: Tensor | None = None, *, known_finite: bool = False
) -> Statistics:
    """Return the average sufficient statistics of examples (..., examples, dimensions) under a mixture.

    Parameters
    ----------
    weights
        As in :func:`fit`.
    known_finite
        Do not look whether the features are finite, for which a GPU would be waited for.

    Raises
    ------
    ValueError
        For features or weights of another shape, or that are not finite.
    """
    x = _features(x, mixture, known_finite)
    return _average(mixture.responsibilities(x), power_moments(x), _fractions(x, weights))


def blend(running: Statistics, batch: Statistics, step_size: float) -> Statistics:
    """Return (1 - step_size) running + step_size batch; a step size of 1 on the full batch is one step of batch EM.

    Raises
    ------
    ValueError
        When the step size is not in (0, 1].
    """
    if not 0 < step_size <= 1:
        raise ValueError(f"the step size must be in (0, 1], got {step_size}")
    return Statistics(*(torch.lerp(old, new, step_size) for old, new in zip(running, batch, strict=True)))


def robbins_monro_step(step: int, alpha: float = 0.7) -> float:
    """Return the step size (step + 2)^-alpha of step 0, 1, ...: sums diverge, and above alpha 1/2 squares converge.

    Raises
    ------
    ValueError
        When alpha is not in (0.5, 1], or the step is negative.
    """
    if not 0.5 < alpha <= 1 or step < 0:
        raise ValueError(f"alpha must be in (0.5, 1] and the step at least 0, got alpha {alpha} and step {step}")
    return math.pow(step + 2, -alpha)


def m_step(statistics: Statistics, variance_floor: float = 1e-6) -> GaussianMixture:
    """Return the mixture with these expected sufficient statistics, the floor added to its variances.

    Raises
    ------
    ValueError
        When the floor is not positive.
    """
    if not 0 < variance_floor < math.inf:
        raise ValueError(f"the variance floor must be above 0, got {variance_floor}")
    weight = statistics.weight + PSEUDO_WEIGHT  # (..., components)
    total = statistics.weight.sum(-1)[..., None, None]

    def average(moment: Tensor) -> Tensor:  # (..., components, dimensions)
        return (moment + PSEUDO_WEIGHT * moment.sum(-2, keepdim=True) / total) / weight.unsqueeze(-1)

    means = average(statistics.first)
    variances = (average(statistics.second) - means.square()).clamp_min(0) + variance_floor
    return GaussianMixture((weight / weight.sum(-1, keepdim=True)).log(), means, variances)


def _average(responsibilities: Tensor, moments: Tensor, fraction: Tensor) -> Statistics:
    shared = responsibilities * fraction.unsqueeze(-1)  # (..., examples, components)
    first, second = (shared.mT @ moments).chunk(2, -1)
    return Statistics(shared.sum(-2), first, second)


def _features(x: Tensor, mixture: GaussianMixture | None = None, known_finite: bool = False) -> Tensor:
    """Return checked features as float64.

    Raises
    ------
    ValueError
        When they are empty, have other dimensions than the mixture, or are not finite.
    """
    if x.ndim < 2 or 0 in x.shape:
        raise ValueError(f"features must be (..., examples, dimensions) and not empty, got shape {tuple(x.shape)}")
    if mixture is not None and x.shape[-1] != mixture.means.shape[-1]:
        raise ValueError(f"features have {x.shape[-1]} dimensions where the mixture has {mixture.means.shape[-1]}")
    x = x.double()
    if (
        not known_finite and not x.sum().isfinite()
    ):  # one NaN or infinity is enough, and ten times faster than asking each
        raise ValueError("features hold NaN or infinity; a network that diverged gives such: lower its learning rate")
    return x


def _fractions(x: Tensor, weights: Tensor | None) -> Tensor:
    """Return example weights (..., examples) scaled to sum 1.

    Raises
    ------
    ValueError
        When the shape differs, a weight is negative or not finite, or all are 0.
    """
    if weights is None:
        return torch.full_like(x[..., 0], 1 / x.shape[-2])
    if weights.shape != x.shape[:-1]:
        raise ValueError(f"example weights have shape {tuple(weights.shape)}, the features {tuple(x.shape)}")
    total = weights.double().sum(-1, keepdim=True)
    if not (weights.isfinite().all() and weights.min() >= 0 and total.min() > 0):
        raise ValueError("example weights must be finite and at least 0, and one of every mixture's above 0")
    return weights.double() / total
