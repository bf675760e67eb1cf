"""Steps from noise to images, beside diffusers' numbers, formulas and distributions that are known exactly."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from fedlab.diffusion.noise_schedule import cosine_betas, ddpm_schedule, linear_betas, ncsn_schedule
from fedlab.diffusion.samplers import (
    ancestral_step,
    annealed_langevin,
    ddim_step,
    initial_noise,
    langevin_step,
    posterior,
    predict_x0,
    sample,
    timesteps,
)
from fedlab.diffusion.sigmas import best_step, geometric_sigmas
from fedlab.errors import ConfigError
from fedlab.seeds import seeded

# Printed by scripts/diffusers_reference.py: its steps, with tables cumulated in float64 from its float32 betas.
REFERENCE = json.loads((Path(__file__).parent / "diffusers_0_42_1.json").read_text())
X, FOUND = (torch.tensor(REFERENCE[name], dtype=torch.float64) for name in ("x", "found"))
BETAS = {"linear": linear_betas(1000), "cosine": cosine_betas(1000)}
SOME = [0, 1, 10, 500, 998, 999]
LAW = ddpm_schedule(linear_betas(1000))


def close(found, wanted, tolerance=1e-6):
    """Relative to the largest value, since clipped and not clipped ones differ by a hundred at the last levels."""
    wanted = torch.as_tensor(wanted, dtype=torch.float64)
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1)) <= tolerance


@pytest.mark.parametrize("schedule", list(BETAS))
def test_schedules_are_those_of_diffusers(schedule):
    assert close(BETAS[schedule][SOME], REFERENCE[schedule]["betas"])


def in_float32(schedule):
    """The law from betas as diffusers rounds them: what is compared is the steps."""
    return ddpm_schedule(BETAS[schedule].float())


@pytest.mark.parametrize("schedule", list(BETAS))
@pytest.mark.parametrize("number", range(12))
def test_ancestral_steps_are_those_of_diffusers(schedule, number):
    variance, clip, level, noise, after = REFERENCE[schedule]["ancestral"][number]
    noise = torch.tensor(noise, dtype=torch.float64)
    law = in_float32(schedule)
    found = ancestral_step(law, X, FOUND, level, level - 1, variance=variance, clip=clip, noise=noise)
    assert close(found, after)


@pytest.mark.parametrize("schedule", list(BETAS))
@pytest.mark.parametrize("number", range(18))
def test_ddim_steps_are_those_of_diffusers(schedule, number):
    eta, clip, level, after = REFERENCE[schedule]["ddim"][number]
    prev_level = level - 100 if level else -1
    found = ddim_step(in_float32(schedule), X, FOUND, level, prev_level, eta=eta, clip=clip, noise=torch.ones_like(X))
    assert close(found, after)


@pytest.mark.parametrize("level", [1, 500, 999])
def test_the_posterior_is_equation_7(level):
    betas = linear_betas(1000)
    kept = (1 - betas).cumprod(0)
    beta, now, last = float(betas[level]), float(kept[level]), float(kept[level - 1])
    clean = torch.tensor([0.3, -0.8], dtype=torch.float64)
    mean, variance = posterior(LAW, clean, X[:2], level, level - 1)
    wanted = last**0.5 * beta / (1 - now) * clean + (1 - beta) ** 0.5 * (1 - last) / (1 - now) * X[:2]
    assert torch.allclose(mean, wanted, rtol=1e-10)
    assert variance == pytest.approx((1 - last) / (1 - now) * beta, rel=1e-9)


def test_the_posterior_by_bayes_rule_on_a_ladder():
    """Precisions add: the clean image at noise 1 and the noisier one at noise 2^2 - 1."""
    law = ncsn_schedule(torch.tensor([1.0, 2.0]))
    mean, variance = posterior(law, torch.tensor([0.0]), torch.tensor([4.0]), 1, 0)
    assert variance == pytest.approx(1 / (1 / 1 + 1 / 3))
    assert float(mean) == pytest.approx(variance * (0 / 1 + 4 / 3))


def test_the_last_step_gives_the_clean_image_and_no_noise():
    x, noise = torch.tensor([0.4]), torch.tensor([1.0])
    noisy = LAW.perturb(x, torch.tensor([0]), noise)
    for step in (ancestral_step, ddim_step):
        assert torch.allclose(step(LAW, noisy, noise, 0, -1), x, atol=1e-6)
    assert torch.allclose(predict_x0(LAW, noisy, noise, 0), x, atol=1e-6)


def test_ddim_follows_the_line_between_noise_and_image():
    """With the true noise and eta 0, any two levels are one step apart."""
    x, noise = torch.tensor([0.4, -0.9]).double(), torch.tensor([1.3, 0.2]).double()
    high, low = (LAW.perturb(x, torch.tensor([level, level]), noise) for level in (900, 17))
    assert torch.allclose(ddim_step(LAW, high, noise, 900, 17), low, atol=1e-9)


def test_which_levels_are_visited():
    assert timesteps(1000, 10) == list(range(0, 1000, 100))
    assert timesteps(10, 10) == list(range(10))
    assert timesteps(7, 3) == [0, 2, 4]
    assert timesteps(1000, 5, "quadratic") == [0, 50, 200, 450, 800]
    assert (timesteps(10, 5, "trailing"), timesteps(7, 3, "trailing")) == ([1, 3, 5, 7, 9], [1, 3, 6])
    assert timesteps(10, 10, "trailing") == list(range(10))
    for steps in (0, 11):
        with pytest.raises(ConfigError, match=f"{steps} sampling steps were asked for and the noise has 10 levels"):
            timesteps(10, steps)
    with pytest.raises(ConfigError, match="meets a level twice"):
        timesteps(10, 10, "quadratic")
    with pytest.raises(ConfigError, match="51 sampling steps"):
        sample(ddpm_schedule(linear_betas(50)), lambda x, level: x, torch.zeros(1, 2), ancestral_step, 51)


# --- distributions that are known exactly: normal pixels of mean M and variance V ---

M, V = 0.3, 0.04


def exact(law):
    """E[e | x] for such pixels."""

    def backbone(x, level):
        alpha, sigma = (table.to(x.dtype)[level][:, None] for table in (law.alpha, law.sigma))
        return sigma * (x - alpha * M) / (alpha**2 * V + sigma**2)

    return backbone


@pytest.mark.parametrize(("step", "steps"), [(ancestral_step, 200), (ddim_step, 100)])
@pytest.mark.parametrize("kind", ["chain", "ladder"])
def test_samples_have_the_moments_of_the_data(step, steps, kind):
    """But for what 200 levels are too coarse by: a seventh of the variance at most, and half as much with 400."""
    law = (
        ddpm_schedule(linear_betas(200, 5e-4, 0.1))
        if kind == "chain"
        else ncsn_schedule(geometric_sigmas(0.02, 5.0, 200))
    )
    with seeded("samples"):
        x = sample(law, exact(law), initial_noise(law, (4000, 2)), partial(step, clip=False), steps)
    assert float(x.mean()) == pytest.approx(M, abs=0.02)
    assert float(x.var()) == pytest.approx(V, rel=0.15)


def test_a_ladder_is_entered_where_its_noise_is_however_few_levels_are_visited():
    """The noise that a sampler starts with is the last level's, 1.7 times that of the level below."""
    law = ncsn_schedule(geometric_sigmas(0.02, 2.0, 10))
    with seeded("samples"):
        x = sample(law, exact(law), initial_noise(law, (4000, 2)), partial(ddim_step, clip=False), 5)
    assert float(x.mean()) == pytest.approx(M, abs=0.03)
    assert float(x.var()) < V  # coarse steps lose some; 1.6 V where the start is one level too high


@pytest.mark.parametrize("level", [1, 30])
def test_ddim_with_eta_1_is_the_ancestral_step_of_small_variance(level):
    law = ddpm_schedule(linear_betas(50))
    one = ddim_step(law, X, FOUND, level, level - 1, eta=1.0, clip=False, noise=FOUND)
    other = ancestral_step(law, X, FOUND, level, level - 1, variance="small", clip=False, noise=FOUND)
    assert torch.allclose(one, other, rtol=1e-9)


def test_langevin_steps_are_those_of_the_papers_algorithm():
    """Drift alpha / 2 and noise sqrt(alpha); the released code's alpha, 2 alpha is the same with twice the alpha."""
    x, slope, noise, alpha = (torch.tensor(value) for value in (1.0, -2.0, 0.5, 0.16))
    assert float(langevin_step(x, slope, float(alpha), noise)) == pytest.approx(1 - 0.08 * 2 + 0.4 * 0.5)
    code = x + alpha * slope + (2 * alpha).sqrt() * noise
    assert float(langevin_step(x, slope, 2 * float(alpha), noise)) == pytest.approx(float(code))


def test_annealed_langevin_is_a_plain_loop():
    sigmas = [0.5, 0.25]
    law = ncsn_schedule(torch.tensor(sorted(sigmas)))
    with seeded("langevin"):
        found = annealed_langevin(law, exact(law), torch.zeros(3, 2), steps=4, step=0.3, denoise=False)
    with seeded("langevin"):
        x = torch.zeros(3, 2)
        for sigma in sigmas:
            for _ in range(4):
                alpha = 0.3 * sigma**2
                x = x + alpha / 2 * (M - x) / (V + sigma**2) + alpha**0.5 * torch.randn(3, 2)
    assert torch.allclose(found, x, atol=1e-6)


def test_annealed_langevin_finds_the_data_and_denoising_takes_the_last_noise_away():
    law, variances = ncsn_schedule(geometric_sigmas(0.1, 2.0, 15)), {}
    step = best_step(float(law.sigma[1] / law.sigma[0]), 20)
    for denoise in (False, True):
        with seeded("samples"):
            x = annealed_langevin(law, exact(law), initial_noise(law, (4000, 2)), steps=20, step=step, denoise=denoise)
        variances[denoise] = float(x.var())
        assert float(x.mean()) == pytest.approx(M, abs=0.02)
    assert variances[False] == pytest.approx(V + 0.1**2, rel=0.1)
    assert variances[True] == pytest.approx((V / (V + 0.1**2)) ** 2 * variances[False], rel=1e-4)  # Tweedie shrinks
