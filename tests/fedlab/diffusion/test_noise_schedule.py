"""Noise laws: the papers' tables, moments of what is drawn, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import kurtosis, skew

from fedlab.diffusion.noise_schedule import (
    NoiseSchedule,
    cosine_betas,
    ddpm_betas,
    ddpm_schedule,
    linear_betas,
    ncsn_schedule,
)
from fedlab.errors import ConfigError
from fedlab.seeds import seeded


def test_ddpm_mixes_by_the_cumulative_product():
    betas = np.linspace(1e-4, 0.02, 1000)
    kept = 1.0
    for level, beta in enumerate(betas):
        kept *= 1 - beta
        if level in (0, 1, 499, 999):
            alpha, sigma = ddpm_schedule(linear_betas(1000)).at(level)
            assert alpha == pytest.approx(kept**0.5, rel=1e-12)
            assert sigma == pytest.approx((1 - kept) ** 0.5, rel=1e-12)


def test_the_cosine_schedule_is_a_squared_cosine_until_it_is_cut():
    betas = cosine_betas(1000)
    kept = (1 - betas).cumprod(0)

    def wanted(part):
        return math.cos((part + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2

    assert [float(kept[level]) for level in (0, 499, 900)] == pytest.approx(
        [wanted((i + 1) / 1000) for i in (0, 499, 900)]
    )
    assert float(betas.max()) == 0.999


def test_a_ladder_adds_noise_and_leaves_the_image():
    law = ncsn_schedule(torch.tensor([0.5, 1.0, 2.0]))
    x, level = torch.tensor([[1.0, -1.0], [0.0, 1.0]]), torch.tensor([0, 2])
    noise = torch.tensor([[1.0, 1.0], [-1.0, 2.0]])
    assert law.perturb(x, level, noise).tolist() == [[1.5, -0.5], [-2.0, 5.0]]
    assert law.at(-1) == (1.0, 0.0)


@pytest.mark.parametrize("level", [0, 10, 40])
def test_gamma_noise_has_the_moments_of_its_paper(level):
    """kbar_t theta_t^2 = 1 - abar_t, skewness 2 / sqrt(kbar_t), excess kurtosis 6 / kbar_t."""
    theta, betas = 0.05, linear_betas(100, 1e-2, 0.1)
    law, kept = ddpm_schedule(betas, theta), (1 - betas).cumprod(0)[level]
    shape = sum(float(betas[i] / (1 - betas).cumprod(0)[i]) / theta**2 for i in range(level + 1))
    assert float(law.gamma_shape[level]) == pytest.approx(shape, rel=1e-9)
    assert shape * (float(kept.sqrt()) * theta) ** 2 == pytest.approx(1 - float(kept), rel=1e-9)
    with seeded("gamma"):
        drawn = law.noise(torch.zeros(1, 200_000), torch.tensor([level]))[0]
    assert drawn.dtype == torch.float32
    assert float(drawn.mean()) == pytest.approx(0, abs=4 / 200_000**0.5)
    assert float(drawn.var()) == pytest.approx(1, abs=0.02)
    assert skew(drawn) == pytest.approx(2 / shape**0.5, abs=0.03)
    assert kurtosis(drawn) == pytest.approx(6 / shape, abs=0.1)


def test_steps_of_the_gamma_chain_add_up_to_its_closed_form():
    """x_t = sqrt(1 - beta_t) x_t-1 + sqrt(beta_t) z, step by step, has the noise that is drawn at once."""
    betas = linear_betas(12, 0.05, 0.3)
    law = ddpm_schedule(betas, 0.5)
    with seeded("steps"):
        x = torch.zeros(1, 200_000)
        for level, beta in enumerate(betas.tolist()):
            x = (1 - beta) ** 0.5 * x + beta**0.5 * law.step_noise(x, level, level - 1)
        at_once = law.sigma[-1] * law.noise(x, torch.tensor([11]))
    for moment in (torch.mean, torch.var, lambda values: torch.tensor(skew(values[0]))):
        assert float(moment(x)) == pytest.approx(float(moment(at_once)), abs=0.02)


def test_gamma_noise_keeps_its_variance_at_the_shapes_of_the_paper():
    law = ddpm_schedule(linear_betas(1000), 0.001)
    assert float(law.gamma_shape[0]) == pytest.approx(1e-4 / (1 - 1e-4) / 1e-6)
    with seeded("large"):
        drawn = law.noise(torch.zeros(1, 100_000), torch.tensor([999]))
    assert float(law.gamma_shape[999]) > 1e10
    assert float(drawn.var()) == pytest.approx(1, abs=0.02)
    assert float(drawn.mean()) == pytest.approx(0, abs=0.02)


def test_levels_are_uniform_and_noise_follows_the_stream():
    law = ddpm_schedule(linear_betas(4, 0.1, 0.5))
    with seeded("levels"):
        counts = law.sample_levels(8000, torch.device("cpu")).bincount(minlength=4)
        first = law.noise(torch.zeros(2, 3), torch.tensor([0, 1]))
    with seeded("levels"):
        law.sample_levels(8000, torch.device("cpu"))
        assert torch.equal(law.noise(torch.zeros(2, 3), torch.tensor([0, 1])), first)
    assert (counts - 2000).abs().max() < 200


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: linear_betas(10, 0.02, 1e-4), "rises from beta 0.02 to 0.0001; 0 < first < last < 1"),
        (
            lambda: ddpm_schedule(torch.tensor([0.1, 0.0])),
            "betas lie between 0 and 0.1; each has to be above 0 and below 1",
        ),
        (lambda: ddpm_schedule(torch.tensor([0.1]), -1.0), "theta is -1"),
        (
            lambda: ncsn_schedule(torch.tensor([1.0, 0.5])),
            "noise has to grow with the level, and level 1 has sigma / alpha 0.5",
        ),
        (lambda: ncsn_schedule(torch.tensor([1.0, float("nan")])), "finite and above 0"),
        (lambda: NoiseSchedule(torch.ones(2), torch.ones(3)), "one alpha and one sigma a level"),
    ],
)
def test_noise_that_does_not_grow_is_refused(make, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make()


def test_ddpms_schedule_ends_in_noise_with_any_number_of_levels():
    assert torch.equal(ddpm_betas(1000), linear_betas(1000))
    for levels in (4, 20, 100, 400):
        assert ddpm_schedule(ddpm_betas(levels)).at(levels - 1)[0] < 0.01
