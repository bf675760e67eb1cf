"""The attack on made-up statistics: what it must find, what it cannot, and that no fit is its own shadow."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.membership import figures, likelihood_ratios


def made_up(shift, fits=40, pool=50, seed=0):
    generator = torch.Generator().manual_seed(seed)
    member = torch.rand(fits, pool, generator=generator) < 0.5
    noise = torch.randn(fits, pool, generator=generator).double()
    return 10 * torch.randn(pool, generator=generator).double() + noise + shift * member, member


def test_a_large_shift_is_found_whatever_the_images_own_level_is():
    values, member = made_up(8.0)
    at_thousandth, at_hundredth, area = figures(
        likelihood_ratios(values, member).numpy().ravel(), member.numpy().ravel()
    )
    assert at_thousandth > 90 and at_hundredth > 95 and area > 99


def test_without_a_shift_nothing_is_found():
    values, member = made_up(0.0, fits=100, pool=200)
    at_thousandth, at_hundredth, area = figures(
        likelihood_ratios(values, member).numpy().ravel(), member.numpy().ravel()
    )
    assert at_thousandth < 1 and at_hundredth < 3 and abs(area - 50) < 3


def test_a_fit_is_not_among_its_own_shadows():
    """Whatever one fit's own value is, the means that it is compared with are those of the others."""
    values, member = made_up(1.0)
    moved = values.clone()
    moved[0, 0] += 1e-3
    ratio = likelihood_ratios(values, member)
    others = [member[1:, 0], ~member[1:, 0]]
    means = [values[1:, 0][side].mean() for side in others]
    slope = (likelihood_ratios(moved, member)[0, 0] - ratio[0, 0]) / 1e-3
    assert torch.sign(slope) == torch.sign(means[0] - means[1])


def test_true_positives_are_counted_above_the_limit_of_false_ones():
    score = np.concatenate([np.arange(1000), [998.5, 999.5, 2000.0, -1.0]])
    member = np.arange(len(score)) >= 1000
    at_thousandth, at_hundredth, area = figures(score, member)
    assert (at_thousandth, at_hundredth) == (75.0, 75.0)
    assert area == pytest.approx(100 * (999 + 1000 + 1000 + 0) / 4000)
