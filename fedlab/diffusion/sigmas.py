"""NCSN's noise levels, and how NCSNv2 chooses them and the step of Langevin dynamics from the data alone.

**Source**: Song and Ermon, Generative Modeling by Estimating Gradients of the Data Distribution, NeurIPS 2019, section
4; Improved Techniques for Training Score-Based Generative Models, NeurIPS 2020: techniques 1 (largest distance), 2
(ratio, equation 5; an overlap of "about 0.5", and 0.57 in its three published schedules) and 4 (step, equation 11).

**Departures**: (1) a step is a fraction of the level's variance, alpha_i / sigma_i^2 = eps / sigma_L^2, so that it does
not depend on the range of pixels, in the convention of the 2019 paper's algorithm 1, drift alpha / 2: equation 11 and
the released code have drift alpha, where half our value does the same; (2) equation 11 is minimized by a search.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedlab.errors import ConfigError


def geometric_sigmas(smallest: float, largest: float, levels: int) -> Tensor:
    """Return standard deviations (levels,), float64, in geometric progression.

    Raises
    ------
    ConfigError
        When there are fewer than two, or they do not increase.
    """
    if levels < 2 or not 0 < smallest < largest:
        raise ConfigError(
            f"a schedule of {levels} levels from sigma {smallest:g} to {largest:g} does not increase; "
            "0 < sigma_min < sigma_max and at least 2 levels are expected"
        )
    return torch.logspace(math.log(smallest), math.log(largest), levels, base=math.e, dtype=torch.float64)


def largest_distance(x: Tensor) -> float:
    """Return the largest Euclidean distance between two examples (batch, ...), technique 1's choice of sigma_max."""
    flat = x.flatten(1)
    return float(torch.cdist(flat, flat).max())


def sigma_ratio(dimensions: int, overlap: float = 0.5) -> float:
    """Return technique 2's ratio of levels, at which the shells of successive levels overlap by ``overlap``.

    The distance of a sample at sigma from its image is close to N(sqrt(D) sigma, sigma^2 / 2); the ratio g solves
    Phi(sqrt(2D)(g - 1) + 3g) - Phi(sqrt(2D)(g - 1) - 3g) = overlap.
    """
    from scipy.optimize import brentq  # late: it is slow to import, and few runs plan their levels
    from scipy.stats import norm

    reach = math.sqrt(2 * dimensions)

    def excess(factor: float) -> float:
        away = reach * (factor - 1)
        return float(norm.cdf(away + 3 * factor) - norm.cdf(away - 3 * factor)) - overlap

    return float(brentq(excess, 1.0, 1.0 + 100.0 / reach))


def num_levels_between(smallest: float, largest: float, factor: float) -> int:
    """Return the number of levels between two standard deviations at a given ratio."""
    return 1 + round(math.log(largest / smallest) / math.log(factor))


def residual_variance(step: float, factor: float, steps: int) -> float:
    """Return equation 11: variance over sigma_i^2 after ``steps`` Langevin steps at level i, started from level i + 1.

    Where all data is one point the score is -x / sigma^2, so a step r (a fraction of the variance) multiplies x by
    1 - r/2 and adds variance r; its fixed point is 2 / (2 - r/2). 1 would be a perfect sampler.
    """
    half = step / 2
    fixed = 2 / (2 - half)
    return float((1 - half) ** (2 * steps) * (factor**2 - fixed) + fixed)


def best_step(factor: float, steps: int) -> float:
    """Return technique 4's step, a fraction of a level's variance, at which equation 11 comes closest to 1."""
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda step: abs(residual_variance(step, factor, steps) - 1), bounds=(1e-6, 2.0), method="bounded"
    )
    return float(found.x)
