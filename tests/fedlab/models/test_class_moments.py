"""Class moments: what one example can change, and what comes back without noise and with a lot of it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlab.models.class_moments import (
    SENSITIVITY,
    ClassMoments,
    class_moments,
    clipped_sums,
    denoise,
    sample,
)

CLASSES, WIDTH = 3, 16


def features(count, shift=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    centers = 3 * torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(9))
    return centers[labels] + shift + torch.randn(count, WIDTH, generator=generator), labels


PUBLIC = class_moments(*features(3000), CLASSES, 1e-6)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(width=32, allow_nan=True), min_size=WIDTH, max_size=WIDTH),
    st.integers(0, CLASSES - 1),
)
def test_one_example_changes_the_sums_by_no_more_than_the_sensitivity(values, label):
    z, labels = features(30)
    more = torch.cat([z, torch.tensor([values])]), torch.cat([labels, torch.tensor([label])])
    change = clipped_sums(*more, PUBLIC) - clipped_sums(z, labels, PUBLIC)
    assert change.isfinite().all()
    assert float(change.norm()) <= SENSITIVITY + 1e-9


def test_an_example_far_away_changes_them_by_the_sensitivity_and_one_in_its_place_by_less_than_twice_that():
    """One that is present or absent attains it; of two in each other's place the counts are the same."""
    z, labels = features(30)
    far, other = (torch.full((1, WIDTH), value) for value in (1e4, -1e4))
    added = [clipped_sums(torch.cat([z, one]), torch.cat([labels, labels[:1]]), PUBLIC) for one in (far, other)]
    assert float((added[0] - clipped_sums(z, labels, PUBLIC)).norm()) == pytest.approx(SENSITIVITY, rel=1e-9)
    assert float((added[0] - added[1]).norm()) == pytest.approx(2.0, rel=1e-5)  # u^2 is nearly the same


@pytest.mark.parametrize(("mean", "variance"), [(math.nan, 1.0), (0.0, 0.0), (math.inf, 1.0), (1e300, 1e-300)])
def test_no_public_moments_void_the_sensitivity(mean, variance):
    """A server that sends others than those of its own features learns no more from the sums."""
    like = torch.ones_like(PUBLIC.means)
    public = ClassMoments(PUBLIC.counts, mean * like, variance * like, PUBLIC.signal)
    z, labels = features(30)
    change = clipped_sums(z, labels, public) - clipped_sums(z[1:], labels[1:], public)
    assert change.isfinite().all()
    assert float(change.norm()) <= SENSITIVITY + 1e-9


def test_an_example_like_the_public_ones_is_not_clipped():
    z, labels = features(1)
    sums = clipped_sums(z, labels, PUBLIC)[labels[0]]
    first = (z[0].double() - PUBLIC.means[0]) / PUBLIC.variances[0].sqrt() / (1.5 * math.sqrt(WIDTH))
    torch.testing.assert_close(sums[1 : 1 + WIDTH], first)
    assert float(sums[0]) == pytest.approx(0.3)


def test_without_noise_the_moments_come_back():
    z, labels = features(3000, shift=0.5, seed=1)
    wanted, found = class_moments(z, labels, CLASSES, 1e-6), denoise(clipped_sums(z, labels, PUBLIC), PUBLIC, 0.0)
    torch.testing.assert_close(found.counts, wanted.counts)
    torch.testing.assert_close(found.means, wanted.means, rtol=0, atol=0.05)  # a few examples are clipped
    torch.testing.assert_close(found.variances, wanted.variances, rtol=0.2, atol=0.0)


def test_where_noise_prevails_the_public_moments_stay():
    z, labels = features(30, shift=0.5, seed=1)
    generator = torch.Generator().manual_seed(3)
    stdv = 1e4
    sums = clipped_sums(z, labels, PUBLIC)
    found = denoise(sums + stdv * torch.randn(sums.shape, generator=generator).double(), PUBLIC, stdv)
    far = ((found.means - PUBLIC.means).square() / PUBLIC.variances).mean().sqrt()
    noise = stdv / found.counts.median() * 1.5 * math.sqrt(WIDTH)
    assert far < 0.7 * noise
    assert (found.variances > 0).all() and (found.counts >= 1).all()


def test_a_class_without_examples_has_the_moments_of_all():
    z, labels = features(40)
    found = class_moments(z, labels.clamp_max(1), CLASSES, 0.01)
    torch.testing.assert_close(found.means[2], z.double().mean(0))
    torch.testing.assert_close(found.variances[2], z.double().var(0, correction=0) + 0.01)


def test_samples_have_the_moments():
    means = torch.tensor([[0.0, 5.0], [9.0, -1.0]]).double()
    wanted = ClassMoments(torch.ones(2), means, torch.full_like(means, 4.0), torch.ones(2))
    torch.manual_seed(0)
    z, labels = sample(wanted, 4000)
    found = class_moments(z, labels, 2, 0.0)
    assert found.counts.tolist() == [4000, 4000]
    torch.testing.assert_close(found.means, wanted.means, rtol=0, atol=0.2)
    torch.testing.assert_close(found.variances, wanted.variances, rtol=0.1, atol=0.0)
