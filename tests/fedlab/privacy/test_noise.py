"""Noise of either kind has the size that was asked for; only the seeded one repeats."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from fedlab.privacy.noise import gaussian_noise, poisson_sample
from fedlab.seeds import seeded


def draw(secret, shape=(200, 50), stdv=3.0):
    with seeded("noise"):
        return gaussian_noise(shape, stdv, secret=secret)


def test_the_seeded_noise_repeats_and_the_secret_one_does_not():
    assert torch.equal(draw(False), draw(False))
    assert not torch.equal(draw(True), draw(True))


@pytest.mark.parametrize("secret", [False, True])
def test_noise_is_normal(secret):
    noise = draw(secret)
    assert noise.shape == (200, 50) and noise.dtype == torch.float64
    assert kstest(noise.flatten().numpy() / 3.0, "norm").pvalue > 1e-6
    assert gaussian_noise((), 1.0, secret=secret).shape == ()


def test_secret_noise_leaves_every_seeded_stream_where_it_was():
    with seeded("stream"):
        first = np.random.random()
    with seeded("stream"):
        gaussian_noise((10,), 1.0, secret=True)
        poisson_sample(10, 0.5, secret=True)
        after = torch.rand(1)
        assert np.random.random() == first
    with seeded("stream"):
        assert torch.equal(after, torch.rand(1))


@pytest.mark.parametrize("secret", [False, True])
def test_each_member_is_in_a_sample_independently(secret):
    with seeded("sample"):
        sizes = [len(poisson_sample(1000, 0.1, secret=secret)) for _ in range(200)]
    assert np.mean(sizes) == pytest.approx(100, abs=5)  # 7 standard deviations of the mean
    assert 50 < np.var(sizes) < 160  # 90, and not 0 as of samples of one size
    assert len(poisson_sample(5, 1.0, secret=secret)) == 5 and not len(poisson_sample(0, 0.5, secret=secret))
