"""Distances between two samples of numbers.

**Source**: the Frechet distance between Gaussians fitted to two samples (Dowson and Landau, 1982), of which FID and FCD
are uses; the 1-Wasserstein distance is scipy's. **Departures**: none.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def frechet(a: Floats, b: Floats) -> float:
    """Return |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), at least 0.

    Parameters
    ----------
    a, b
        (samples, dimensions), two samples at least each. The estimate is too large for few samples: report their
        number.

    Raises
    ------
    ValueError
        When a side has fewer than two samples.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a covariance needs two samples; got {len(a)} and {len(b)}")
    s_a, s_b = (np.atleast_2d(np.cov(sample, rowvar=False)) for sample in (a, b))
    values, vectors = np.linalg.eigh(s_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ s_b @ root).clip(0)).sum()  # tr (S_a S_b)^(1/2), without complex parts
    gap = np.square(a.mean(0) - b.mean(0)).sum()
    return float(max(gap + np.trace(s_a) + np.trace(s_b) - 2 * cross, 0.0))


def total_variation(a: Mapping[str, float], b: Mapping[str, float]) -> float:
    """Return half the absolute difference of two histograms, each scaled to sum 1: 0 equal, 1 disjoint."""
    of_a, of_b = sum(a.values()), sum(b.values())
    return 0.5 * sum(abs(a.get(name, 0) / of_a - b.get(name, 0) / of_b) for name in {*a, *b})
