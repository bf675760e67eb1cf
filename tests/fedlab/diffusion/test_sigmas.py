"""Ladders of noise: NCSN's, and NCSNv2's published choices from its formulas."""

from __future__ import annotations

import pytest
import torch

from fedlab.diffusion.sigmas import (
    best_step,
    geometric_sigmas,
    largest_distance,
    num_levels_between,
    residual_variance,
    sigma_ratio,
)
from fedlab.errors import ConfigError


def test_ncsns_ladder_is_geometric():
    sigmas = geometric_sigmas(0.01, 1.0, 10)
    assert len(sigmas) == 10
    assert [float(sigmas[0]), float(sigmas[-1])] == pytest.approx([0.01, 1.0])
    assert (sigmas[1:] / sigmas[:-1]).tolist() == pytest.approx([100 ** (1 / 9)] * 9)
    assert 1 / float(sigmas[1] / sigmas[0]) == pytest.approx(0.599, abs=1e-3)


@pytest.mark.parametrize(("pixels", "largest", "levels"), [(32, 50, 232), (64, 90, 500), (256, 348, 2311)])
def test_technique_2_gives_the_published_numbers_of_levels(pixels, largest, levels):
    """The paper says an overlap of about 0.5; its three ladders all have 0.57."""
    factor = sigma_ratio(3 * pixels**2, 0.566)
    assert num_levels_between(0.01, largest, factor) == pytest.approx(levels, rel=0.01)


def test_technique_1_is_the_largest_distance():
    x = torch.tensor([[[0.0, 0.0]], [[3.0, 4.0]], [[1.0, 1.0]]])
    assert largest_distance(x) == 5


def test_equation_11_is_what_langevin_dynamics_does_to_a_point():
    step, factor, sigma = 0.3, 1.4, 0.7
    variance = (factor * sigma) ** 2
    for _ in range(5):  # x - alpha / 2 x / sigma^2 + sqrt(alpha) z
        variance = (1 - step / 2) ** 2 * variance + step * sigma**2
    assert residual_variance(step, factor, 5) == pytest.approx(variance / sigma**2)


def test_technique_4_gives_the_published_step():
    """CIFAR-10: T = 5, eps = 6.2e-6, sigma_L = 0.01 in the convention with drift alpha, half of ours."""
    assert best_step((50 / 0.01) ** (1 / 231), 5) == pytest.approx(2 * 6.2e-6 / 1e-4, rel=0.02)


@pytest.mark.parametrize(("smallest", "largest", "levels"), [(1.0, 0.1, 10), (0.0, 1.0, 10), (0.1, 1.0, 1)])
def test_a_ladder_that_does_not_increase_is_refused(smallest, largest, levels):
    with pytest.raises(ConfigError, match="does not increase"):
        geometric_sigmas(smallest, largest, levels)
