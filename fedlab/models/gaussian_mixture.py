"""Diagonal Gaussian mixtures: densities, responsibilities and samples, of several mixtures at once.

Every tensor may carry leading dimensions (several clients' mixtures at once), written ``...`` below; a mixture's and
its examples' leading dimensions broadcast. All arithmetic is float64, whatever the features are: it costs little, and a
density in many dimensions is a small difference of large sums. :mod:`fedlab.models.em` fits mixtures,
:mod:`fedlab.models.mixture_ops` merges and compares them, :mod:`fedlab.models.conformal` makes p-values of densities.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor


class Statistics(NamedTuple):
    """Sufficient statistics averaged over the examples; r is the responsibility of a component for an example."""

    weight: Tensor  # (..., components), mean of r
    first: Tensor  # (..., components, dimensions), mean of r x
    second: Tensor  # (..., components, dimensions), mean of r x^2


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """A mixture: sum over components of weight x Normal(mean, diag(variances)); float64.

    Example: ``mixture = em.fit(features, 10); density = mixture.log_prob(x)``.
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
        return log_joint_of(self.translate(-center), power_moments(x.double() - center.unsqueeze(-2)))

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
        return posterior(self.log_joint(x))[0]

    def sample(self, count: int) -> Tensor:
        """Return independent examples (..., count, dimensions) from torch's current CPU stream."""
        component = draw_indices(self.log_weights.exp().cumsum(-1), count)  # (..., count)
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


def stack(mixtures: Sequence[GaussianMixture]) -> GaussianMixture:
    """Return mixtures of one shape stacked along a new leading dimension, so that one call scores them all."""
    return GaussianMixture(
        *(torch.stack([getattr(mixture, f.name) for mixture in mixtures]) for f in fields(GaussianMixture))
    )


def power_moments(x: Tensor) -> Tensor:
    """Return (..., examples, 2 dimensions): x and x^2, so that either step of EM is one matrix product."""
    return torch.cat([x, x.square()], -1)


def log_joint_of(mixture: GaussianMixture, moments: Tensor) -> Tensor:
    """Return log(weight x density) of every component, (..., examples, components), from the expanded square."""
    precisions = mixture.variances.reciprocal()
    scaled = mixture.means * precisions
    log_2pi_variance = (2 * math.pi * mixture.variances).log()
    constant = mixture.log_weights - 0.5 * (log_2pi_variance + mixture.means * scaled).sum(-1)  # (..., components)
    return moments @ torch.cat([scaled, -0.5 * precisions], -1).mT + constant.unsqueeze(-2)


def posterior(log_joint: Tensor) -> tuple[Tensor, Tensor]:
    """Return responsibilities (..., examples, components) and log_prob (..., examples).

    Responsibilities below e^-100 are raised to that: it changes no sum, and denormal numbers would make either step 3
    times slower.
    """
    peak = log_joint.amax(-1, keepdim=True)
    likelihood = (log_joint - peak).clamp_min(-100).exp()
    total = likelihood.sum(-1, keepdim=True)
    return likelihood / total, (peak + total.log()).squeeze(-1)


def take_rows(rows: Tensor, index: Tensor) -> Tensor:
    """Gather rows (..., n, dimensions) at ``index`` (..., m): (..., m, dimensions)."""
    return rows.gather(-2, index.unsqueeze(-1).expand(*index.shape, rows.shape[-1]))


def draw_indices(cumulated: Tensor, count: int) -> Tensor:
    """Return indices (..., count) in proportion to odds whose running sums are (..., n), drawn on the CPU's stream."""
    uniform = torch.rand(*cumulated.shape[:-1], count, dtype=torch.float64).to(cumulated.device)
    index = torch.searchsorted(cumulated, uniform * cumulated[..., -1:], right=True)  # right: never odds of 0
    return index.clamp_max(cumulated.shape[-1] - 1)
