"""Class moments of features: clipped sums that can be noised, and what can be made of them.

Each example adds to its class's sums a vector whose norm is bounded whatever the example is, so Gaussian noise on the
sums makes them differentially private for each example. All else here reads the noised sums only, and costs nothing
more.

With u = (z - m_c) / s_c the feature standardized by public moments of its class c (width d), the vector is
(0.3, u / (1.5 sqrt d), (u^2 - 1) / (2.5 sqrt d)), either block clipped to norm 1. Were the example as public ones are,
the blocks would have norms of about 2/3 and 0.6: little is clipped, and of the three the count, which needs least,
gets the smallest part.

**Source**: the analytic counterpart is sufficient statistics perturbation (Foulds et al., UAI 2016); denoising is the
empirical Bayes shrinkage of James and Stein, towards the public moments.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

COUNT, FIRST, SECOND = 0.3, 1.5, 2.5
SENSITIVITY = math.sqrt(COUNT**2 + 1 + 1)  # largest norm of what one example adds to the sums
VARIANCE_RANGE = (0.1, 10.0)  # of a denoised variance, in public ones


@dataclass(frozen=True, eq=False)
class ClassMoments:
    """Number of examples, mean and variance of features by class.

    Attributes
    ----------
    counts
        (classes,).
    means, variances
        (classes, width); variances are above 0.
    signal
        Part of the variance of the means that is no noise, in [0, 1] (classes,).
    """

    counts: Tensor
    means: Tensor
    variances: Tensor
    signal: Tensor


def class_moments(z: Tensor, labels: Tensor, classes: int, variance_floor: float) -> ClassMoments:
    """Return the moments of features z (examples, width) with labels (examples,); a class without two has those of all.

    ``variance_floor`` is added to every variance.
    """
    z = z.double()
    member = torch.nn.functional.one_hot(labels, classes).to(z)  # (examples, classes)
    counts = member.sum(0)
    total = counts.clamp_min(1).unsqueeze(1)
    means = (member.mT @ z) / total
    variances = ((member.mT @ z.square()) / total - means.square()).clamp_min(0)
    few = (counts < 2).unsqueeze(1)
    means = torch.where(few, z.mean(0), means)
    variances = torch.where(few, z.var(0, correction=0), variances)
    return ClassMoments(counts, means, variances + variance_floor, torch.ones_like(counts))


def clipped_sums(z: Tensor, labels: Tensor, public: ClassMoments) -> Tensor:
    """Return the sums over examples (classes, 1 + 2 width), which one example changes by at most ``SENSITIVITY``.

    Parameters
    ----------
    z
        Features (examples, width); where one of them, or what it is standardized by, makes a part of the vector NaN or
        infinite, that counts as 0 or as the largest number. So no example and no moments void the bound.
    labels
        Class of each example (examples,), found without looking at the others.
    public
        Moments that are known to everybody.
    """
    z = z.double()
    reach = math.sqrt(z.shape[1])
    standard = (z - public.means[labels]) / public.variances[labels].sqrt()
    blocks = [
        torch.full_like(z[:, :1], COUNT),
        _clip(standard / (FIRST * reach)),
        _clip((standard.square() - 1) / (SECOND * reach)),
    ]
    member = torch.nn.functional.one_hot(labels, len(public.counts)).to(z)
    sums: Tensor = member.mT @ torch.cat(blocks, 1)
    return sums


def _clip(rows: Tensor) -> Tensor:
    """Return rows (examples, width) scaled to a norm of at most 1."""
    rows = rows.nan_to_num(0.0, 1e30, -1e30)
    largest = rows.abs().amax(1, keepdim=True).clamp_min(1.0)  # first by the largest value, whose square may overflow
    rows = rows / largest
    norms: Tensor = rows.norm(dim=1, keepdim=True)
    return rows / norms.maximum(1.0 / largest)


def denoise(sums: Tensor, public: ClassMoments, stdv: float) -> ClassMoments:
    """Return moments from noised sums (classes, 1 + 2 width), shrunk towards the public ones where noise prevails.

    Parameters
    ----------
    sums
        As :func:`clipped_sums`, with noise.
    public
        The same as for the sums.
    stdv
        Standard deviation of the noise.
    """
    width = public.means.shape[1]
    counts = (sums[:, 0] / COUNT).clamp_min(1.0)
    first, second = (sums[:, 1:] / counts.unsqueeze(1)).chunk(2, 1)
    noise = (stdv / counts).square().unsqueeze(1)  # variance of each mean
    signal = _signal(first, noise)
    shift = signal * first * FIRST * math.sqrt(width)  # in public standard deviations
    spread = 1 + _signal(second, noise) * second * SECOND * math.sqrt(width) - shift.square()
    variances = public.variances * spread.clamp(*VARIANCE_RANGE)
    return ClassMoments(counts, public.means + shift * public.variances.sqrt(), variances, signal.squeeze(1))


def _signal(rows: Tensor, noise: Tensor) -> Tensor:
    """Return the part of the variance of rows (classes, width) that is not ``noise`` (classes, 1): (classes, 1)."""
    signal = (rows.square().mean(1, keepdim=True) - noise).clamp_min(0)
    return signal / (signal + noise).clamp_min(torch.finfo(rows.dtype).tiny)


def sample(moments: ClassMoments, per_class: int) -> tuple[Tensor, Tensor]:
    """Return Gaussian features (classes * per_class, width) and their labels from torch's current CPU stream."""
    labels = torch.arange(len(moments.counts)).repeat_interleave(per_class)
    noise = torch.randn(len(labels), moments.means.shape[1], dtype=torch.float64).to(moments.means.device)
    labels = labels.to(moments.means.device)
    return moments.means[labels] + moments.variances[labels].sqrt() * noise, labels
