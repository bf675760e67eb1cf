"""Distances against scipy and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from fedlab.evaluation.distances import frechet, total_variation

RNG = np.random.default_rng(0)


def test_frechet_is_scipys_matrix_root():
    a = RNG.normal(size=(200, 4)) @ RNG.normal(size=(4, 4)) + 1.0
    b = RNG.normal(size=(300, 4)) @ RNG.normal(size=(4, 4))
    s_a, s_b = np.cov(a.T), np.cov(b.T)
    wanted = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s_a + s_b - 2 * sqrtm(s_a @ s_b).real)
    assert frechet(a, b) == pytest.approx(wanted, rel=1e-9)
    assert frechet(b, a) == pytest.approx(wanted, rel=1e-9)


def test_frechet_in_one_dimension_by_hand():
    a, b = np.array([[0.0], [2.0]]), np.array([[3.0], [3.0], [9.0], [9.0]])  # variances 2 and 12
    assert frechet(a, b) == pytest.approx(25 + (2**0.5 - 12**0.5) ** 2)


def test_frechet_of_a_flat_sample_and_of_a_sample_with_itself():
    flat = np.ones((10, 3))
    assert frechet(flat, flat) == 0
    a = RNG.normal(size=(50, 3))
    a[:, 2] = a[:, 0]  # a singular covariance
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="two samples; got 1 and 50"):
        frechet(a[:1], a)


def test_total_variation_by_hand():
    assert total_variation({"C": 3, "N": 1}, {"C": 1, "O": 1}) == pytest.approx(0.5)
    assert total_variation({"C": 2}, {"C": 7}) == 0
    assert total_variation({"C": 2}, {"N": 7}) == 1
