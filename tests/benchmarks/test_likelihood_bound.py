"""The variational bound, where it is known: one image, whose noise a network can find without error."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import norm

from benchmarks.likelihood_bound import bits_per_dimension, discretized_nll, normal_kl
from fedlab.diffusion.noise_schedule import ddpm_schedule, linear_betas, ncsn_schedule
from fedlab.diffusion.samplers import posterior, transition
from fedlab.errors import ConfigError
from fedlab.seeds import seeded

LAW = ddpm_schedule(linear_betas(20, 0.01, 0.4))


def test_the_divergence_of_two_normals():
    wanted = math.log(3 / 2) + (4 + 0.25) / (2 * 9) - 0.5
    assert float(normal_kl(torch.tensor(1.5), 4.0, 1.0, 9.0)) == pytest.approx(wanted)
    assert float(normal_kl(torch.tensor(1.5), 4.0, 1.5, 4.0)) == pytest.approx(0)


def test_the_gray_levels_of_a_pixel_share_out_all_of_the_mass():
    gray = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    for mean, variance in ((0.1, 0.01), (-1.2, 0.5), (0.0, 1e-5)):
        mass = (-discretized_nll(gray, torch.tensor(mean, dtype=torch.float64), variance)).exp()
        assert float(mass.sum()) == pytest.approx(1, abs=1e-6)
        edges = [-math.inf, *(gray[:-1] + 1 / 255).tolist(), math.inf]
        cdf = norm.cdf(edges, mean, variance**0.5)
        assert mass.tolist() == pytest.approx((cdf[1:] - cdf[:-1]).tolist(), abs=1e-9)


def test_far_tails_stay_finite():
    far = discretized_nll(torch.tensor([-0.5, 0.5]).double(), torch.tensor([0.9, -0.9]).double(), 1e-4)
    assert torch.isfinite(far).all()
    assert far[0] == far[1]
    assert float(far[0]) == pytest.approx((1.4 - 1 / 255) ** 2 / 2e-4, rel=0.01)


@pytest.mark.parametrize("variance", ["large", "small"])
def test_a_network_that_knows_the_image_pays_for_the_last_level_the_variances_and_the_first_pixel(variance):
    x = torch.tensor([[0.0, 64 / 127.5 - 1, 1.0], [-1.0, 0.0, 0.0]])

    def network(noisy, level):
        alpha, sigma = (table.float()[level][:, None] for table in (LAW.alpha, LAW.sigma))
        return (noisy - alpha * x) / sigma

    alpha, sigma = LAW.at(19)
    last = ((alpha * x.double()) ** 2 + sigma**2 - 1) / 2 - math.log(sigma)
    ratios = [posterior(LAW, x, x, t, t - 1)[1] / transition(LAW, t, t - 1)[1] for t in range(1, 20)]
    mismatch = sum((ratio - 1 - math.log(ratio)) / 2 for ratio in ratios) if variance == "large" else 0.0
    first = discretized_nll(x.double(), x.double(), posterior(LAW, x, x, 1, 0)[1])
    wanted = (last + mismatch + first).mean(1) / math.log(2)
    with seeded("bound"):
        found = bits_per_dimension(LAW, network, x, variance)
    assert found.tolist() == pytest.approx(wanted.tolist(), abs=1e-3)


def test_a_network_that_finds_nothing_pays_more():
    x = torch.full((1, 4), 0.2)
    with seeded("bound"):
        assert float(bits_per_dimension(LAW, lambda noisy, level: 0 * noisy, x)) > 8


@pytest.mark.parametrize(
    "law",
    [ncsn_schedule(torch.tensor([0.1, 1.0])), ddpm_schedule(linear_betas(5), 0.1), ddpm_schedule(torch.tensor([0.5]))],
)
def test_a_law_without_this_bound_is_refused(law):
    with pytest.raises(ConfigError, match="DDPM's Gaussian process"):
        bits_per_dimension(law, lambda noisy, level: noisy, torch.zeros(1, 2))
