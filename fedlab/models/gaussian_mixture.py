"""Diagonal Gaussian mixtures, fitted by batch and stepwise EM, several mixtures at once.

Every tensor may carry leading dimensions (several clients' mixtures at once), written ``...`` below; a mixture's and
its examples' leading dimensions broadcast. All arithmetic is float64, whatever the features are: it costs little, and a
density in many dimensions is a small difference of large sums. Randomness comes from torch's current CPU stream, also
on a GPU, so an initialization does not depend on the device.

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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

PSEUDO_WEIGHT = 10 * torch.finfo(torch.float64).eps  # share of one example that every component is given


class Statistics(NamedTuple):
    """Sufficient statistics averaged over the examples; r is the responsibility of a component for an example."""

    weight: Tensor  # (..., components), mean of r
    first: Tensor  # (..., components, dimensions), mean of r x
    second: Tensor  # (..., components, dimensions), mean of r x^2


# --- batch EM ---------------------------------------------------------------------------------------------------------


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
    moments = _moments(x - center.unsqueeze(-2))  # computed once; centered, so that nothing large cancels
    mixture = start.check().translate(-center)
    while True:
        responsibilities, log_prob = _posterior(_log_joint(mixture, moments))
        mixture = m_step(_average(responsibilities, moments, fraction), variance_floor)
        yield mixture.translate(center), (fraction * log_prob).sum(-1)


@torch.no_grad()
def kmeans_plusplus_init(x: Tensor, components: int, *, variance_floor: float = 1e-6, weights: Tensor | None = None) -> GaussianMixture:
    """Return the initial mixture of k-means++ seeds.

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
        seeds.append(take_rows(x, _draw(odds, 1)))
        candidate = x - seeds[-1]
        squared = candidate.square().sum(-1)
        closer = squared < nearest if len(seeds) > 1 else torch.ones_like(squared, dtype=torch.bool)
        nearest, offset = torch.where(closer, squared, nearest), torch.where(closer.unsqueeze(-1), candidate, offset)
    means = torch.cat(seeds, -2)
    variances = (fraction.unsqueeze(-2) @ offset.square() + variance_floor).expand_as(means)
    return GaussianMixture(torch.full_like(means[..., 0], -math.log(components)), means, variances)


# --- stepwise EM ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def e_step(mixture: GaussianMixture, x: Tensor, weights: Tensor | None = None) -> Statistics:
    """Return the average sufficient statistics of examples (..., examples, dimensions) under a mixture.

    Raises
    ------
    ValueError
        For features or weights of another shape, or that are not finite.
    """
    x = _features(x, mixture)
    return _average(mixture.responsibilities(x), _moments(x), _fractions(x, weights))


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


# --- several mixtures -------------------------------------------------------------------------------------------------


def stack(mixtures: Sequence[GaussianMixture]) -> GaussianMixture:
    """Return mixtures of one shape stacked along a new leading dimension, so that one call scores them all."""
    return GaussianMixture(*(torch.stack([getattr(mixture, f.name) for mixture in mixtures]) for f in fields(GaussianMixture)))


# --- the parts --------------------------------------------------------------------------------------------------------


def _moments(x: Tensor) -> Tensor:
    """Return (..., examples, 2 dimensions): x and x^2, so that either step of EM is one matrix product."""
    return torch.cat([x, x.square()], -1)


def _log_joint(mixture: GaussianMixture, moments: Tensor) -> Tensor:
    """Return log(weight x density) of every component, (..., examples, components), from the expanded square."""
    precisions = mixture.variances.reciprocal()
    scaled = mixture.means * precisions
    log_2pi_variance = (2 * math.pi * mixture.variances).log()
    constant = mixture.log_weights - 0.5 * (log_2pi_variance + mixture.means * scaled).sum(-1)  # (..., components)
    return moments @ torch.cat([scaled, -0.5 * precisions], -1).mT + constant.unsqueeze(-2)


def _posterior(log_joint: Tensor) -> tuple[Tensor, Tensor]:
    """Return responsibilities (..., examples, components) and log_prob (..., examples).

    Responsibilities below e^-100 are raised to that: it changes no sum, and denormal numbers would make either step 3
    times slower.
    """
    peak = log_joint.amax(-1, keepdim=True)
    likelihood = (log_joint - peak).clamp_min(-100).exp()
    total = likelihood.sum(-1, keepdim=True)
    return likelihood / total, (peak + total.log()).squeeze(-1)


def _average(responsibilities: Tensor, moments: Tensor, fraction: Tensor) -> Statistics:
    shared = responsibilities * fraction.unsqueeze(-1)  # (..., examples, components)
    first, second = (shared.mT @ moments).chunk(2, -1)
    return Statistics(shared.sum(-2), first, second)


def take_rows(rows: Tensor, index: Tensor) -> Tensor:
    """Gather rows (..., n, dimensions) at ``index`` (..., m): (..., m, dimensions)."""
    return rows.gather(-2, index.unsqueeze(-1).expand(*index.shape, rows.shape[-1]))


def _draw(cumulated: Tensor, count: int) -> Tensor:
    """Draw indices (..., count) in proportion to odds whose running sums are (..., n), on the CPU's stream."""
    uniform = torch.rand(*cumulated.shape[:-1], count, dtype=torch.float64).to(cumulated.device)
    index = torch.searchsorted(cumulated, uniform * cumulated[..., -1:], right=True)  # right: never odds of 0
    return index.clamp_max(cumulated.shape[-1] - 1)


def _features(x: Tensor, mixture: GaussianMixture | None = None) -> Tensor:
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
    if not x.sum().isfinite():  # one NaN or infinity is enough, and ten times faster than asking each
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


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """A mixture: sum over components of weight x Normal(mean, diag(variances)); float64.

    Example: ``mixture = fit(features, 10); density = mixture.log_prob(x)``.
    """

    log_weights: Tensor  # (..., components), natural logarithms; exp sums to 1
    means: Tensor  # (..., components, dimensions)
    variances: Tensor  # (..., components, dimensions), above 0

    def __getitem__(self, index: int) -> GaussianMixture:
        """Return one of several mixtures: ``index`` into the first leading dimension."""
        if self.means.ndim < 3:
            raise ValueError("a single mixture cannot be indexed")
        return GaussianMixture(self.log_weights[index], self.means[index], self.variances[index])

    def log_joint(self, x: Tensor) -> Tensor:
        """Return log(weight x density) by component: x (..., examples, dimensions) -> (..., examples, components).

        Raises
        ------
        ValueError
            When x has other dimensions than the mixture.
        """
        if x.shape[-1] != self.means.shape[-1]:
            raise ValueError(f"features have {x.shape[-1]} dimensions where the mixture has {self.means.shape[-1]}")
        center = (self.log_weights.exp().unsqueeze(-2) @ self.means).squeeze(-2)  # expanded squares cancel less there
        return _log_joint(self.translate(-center), _moments(x.double() - center.unsqueeze(-2)))

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the natural log-density (..., examples) of x (..., examples, dimensions).

        Raises
        ------
        ValueError
            When x has other dimensions than the mixture.
        """
        return self.log_joint(x).logsumexp(-1)

    def responsibilities(self, x: Tensor) -> Tensor:
        """Return the probability of each component given the example: (..., examples, components), rows sum to 1."""
        return _posterior(self.log_joint(x))[0]

    def sample(self, count: int) -> Tensor:
        """Return independent examples (..., count, dimensions) from torch's current CPU stream."""
        component = _draw(self.log_weights.exp().cumsum(-1), count)  # (..., count)
        noise = torch.randn(*component.shape, self.means.shape[-1], dtype=torch.float64).to(self.means.device)
        return take_rows(self.means, component) + take_rows(self.variances.sqrt(), component) * noise

    def statistics(self) -> Statistics:
        """Return the expected sufficient statistics under the mixture itself: the initial ones of stepwise EM."""
        weight = self.log_weights.exp()
        first = weight.unsqueeze(-1) * self.means
        return Statistics(weight, first, weight.unsqueeze(-1) * (self.variances + self.means.square()))

    def translate(self, by: Tensor) -> GaussianMixture:
        """Return the mixture of x + by; by (..., dimensions)."""
        means = self.means + by.unsqueeze(-2)
        return GaussianMixture(self.log_weights.expand(means.shape[:-1]), means, self.variances.expand_as(means))

    def arrays(self) -> dict[str, Tensor]:
        """Return the fields by name, for messages; log weights, which are restored to the same bits."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Tensor]) -> GaussianMixture:
        """Restore a mixture from :meth:`arrays`; other names are ignored.

        Raises
        ------
        ValueError
            When a name is missing, or the values are no mixture (:meth:`check`).
        """
        names = [field.name for field in fields(cls)]
        if missing := [name for name in names if name not in arrays]:
            raise ValueError(f"a mixture's arrays are {', '.join(names)}; missing: {', '.join(missing)}")
        return cls(*(torch.as_tensor(arrays[name], dtype=torch.float64) for name in names)).check()

    def to(self, device: torch.device | str) -> GaussianMixture:
        """Return the same mixture on another device."""
        return GaussianMixture(self.log_weights.to(device), self.means.to(device), self.variances.to(device))

    def check(self) -> GaussianMixture:
        """Return the mixture itself after a check.

        Raises
        ------
        ValueError
            When shapes do not match, a value is not finite, a variance is not positive, or weights do not sum to 1.
        """
        shapes = {name: tuple(array.shape) for name, array in self.arrays().items()}
        fitting = self.log_weights.shape == self.means.shape[:-1] and self.means.shape == self.variances.shape
        if self.means.ndim < 2 or not fitting:
            raise ValueError(
                f"means and variances must be (..., components, dimensions) beside log weights, got {shapes}"
            )
        for name, array in self.arrays().items():
            if not array.isfinite().all():
                raise ValueError(f"the mixture's {name} hold NaN or infinity")
        if self.variances.min() <= 0:
            raise ValueError(f"variances must be above 0, the smallest is {self.variances.min().item():g}")
        totals = self.log_weights.exp().sum(-1)
        if (totals - 1).abs().max() > 1e-6:
            raise ValueError(f"weights must sum to 1, got {totals.flatten()[(totals - 1).abs().argmax()].item():g}")
        return self
