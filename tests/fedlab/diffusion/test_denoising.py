"""The shared objective: by hand, as both papers write it, beside sliced score matching, on a known score."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedlab.diffusion.denoising import (
    check_images,
    denoising_errors,
    denoising_loss,
    noise_estimate,
    score,
    sliced_loss,
)
from fedlab.diffusion.noise_schedule import ddpm_schedule, linear_betas, ncsn_schedule
from fedlab.diffusion.samplers import annealed_langevin, initial_noise
from fedlab.diffusion.sigmas import geometric_sigmas
from fedlab.errors import ConfigError, DataError
from fedlab.seeds import seeded
from fedlab.training import train_steps

LADDER = ncsn_schedule(geometric_sigmas(0.1, 2.0, 5))


def test_a_network_that_finds_nothing_has_the_noises_square_as_its_error():
    noise = torch.tensor([[1.0, 3.0], [0.0, 2.0]])
    errors = denoising_errors(LADDER, lambda x, level: 0 * x, torch.zeros(2, 2), torch.tensor([0, 4]), noise)
    assert errors.tolist() == [5.0, 2.0]


def test_it_is_what_ddpm_writes():
    law, x = ddpm_schedule(linear_betas(1000)), torch.tensor([[0.5, -0.25]])
    level, noise = torch.tensor([300]), torch.tensor([[0.7, -1.1]])
    kept = float((1 - linear_betas(1000)).cumprod(0)[300])

    def network(x, level):
        return x * 0.3 + level[:, None] / 1000

    wanted = (noise - network(kept**0.5 * x + (1 - kept) ** 0.5 * noise, level)).square().mean()
    assert float(denoising_errors(law, network, x, level, noise)) == pytest.approx(float(wanted), rel=1e-5)


def test_it_is_what_ncsn_writes_over_half_the_dimensions():
    """1/2 sigma^2 |s(x~) + (x~ - x) / sigma^2|^2 for a network that gives the score."""
    law = ncsn_schedule(geometric_sigmas(0.1, 2.0, 5), predicts_score=True)
    x, level, noise = torch.tensor([[0.5, -0.25, 0.1]]), torch.tensor([3]), torch.tensor([[0.7, -1.1, 0.2]])
    sigma = law.at(3)[1]

    def network(x, level):
        return -0.4 * x

    noisy = x + sigma * noise
    wanted = 0.5 * sigma**2 * (network(noisy, level) + (noisy - x) / sigma**2).square().sum()
    assert float(denoising_errors(law, network, x, level, noise)) * 3 / 2 == pytest.approx(float(wanted), rel=1e-5)


def test_noise_and_score_say_the_same():
    x, level = torch.randn(4, 2), torch.tensor([0, 1, 2, 4])
    sigma = LADDER.sigma.float()[level][:, None]
    predicts_score = ncsn_schedule(geometric_sigmas(0.1, 2.0, 5), predicts_score=True)
    assert torch.allclose(score(LADDER, lambda x, level: x * sigma, x, level), -x)
    assert torch.allclose(score(predicts_score, lambda x, level: -x, x, level), -x)
    assert torch.allclose(noise_estimate(predicts_score, lambda x, level: -x, x, level), x * sigma)


def test_gamma_noise_has_no_score():
    law = ddpm_schedule(linear_betas(10), 0.01)
    for use in (
        lambda: score(law, torch.add, torch.ones(1, 1), torch.tensor([0])),
        lambda: sliced_loss(law, torch.add, torch.ones(1, 1)),
    ):
        with pytest.raises(ConfigError, match="only where noise is Gaussian"):
            use()


def test_the_sliced_loss_of_a_linear_score_is_its_trace_plus_half_its_square():
    """s = -A x with diagonal A: v' J v = -tr A for every v of signs; a wrong sign would give +tr A."""
    law, diagonal = ncsn_schedule(torch.tensor([0.5])), torch.tensor([1.0, 3.0])
    predicts_score = ncsn_schedule(torch.tensor([0.5]), predicts_score=True)
    x = torch.tensor([[0.2, -0.4]])
    with seeded("sliced"):
        found = sliced_loss(predicts_score, lambda x, level: -diagonal * x, x)
    with seeded("sliced"):
        level = law.sample_levels(1, x.device)
        noisy = law.perturb(x, level, law.noise(x, level))
    wanted = -diagonal.sum() + 0.5 * (diagonal * noisy).square().sum()
    assert float(found.detach()) == pytest.approx(float(2 / 2 * 0.5**2 * wanted + 1), rel=1e-5)


def test_sliced_and_denoising_losses_have_one_expectation_and_one_slope():
    x = torch.tensor([[0.3, -0.5]]).expand(100_000, 2)
    weight = torch.tensor([[0.5, 0.2], [-0.1, 0.3]], requires_grad=True)

    def network(x, level):
        return x @ weight / (1 + level[:, None])

    with seeded("one"):
        denoising = denoising_loss(LADDER, network, x)
        sliced = sliced_loss(LADDER, network, x)
    assert sliced.item() == pytest.approx(denoising.item(), abs=0.03)
    slopes = [torch.autograd.grad(loss, weight)[0] for loss in (denoising, sliced)]
    assert torch.allclose(*slopes, atol=0.05)


@pytest.mark.parametrize("value", [1.01, -2.0, float("nan"), 255.0])
def test_images_outside_the_range_are_refused(value):
    check_images(torch.tensor([-1.0, 1.0]))
    with pytest.raises(DataError, match=r"denoising is made for \[-1, 1\]"):
        check_images(torch.tensor([0.0, value]))


# --- a mixture whose score is known exactly ---

CENTERS, SHARES, WIDTH = torch.tensor([[-1.0, -1.0], [1.0, 1.0]]), torch.tensor([0.25, 0.75]), 0.3


def points(count):
    return CENTERS[torch.multinomial(SHARES, count, replacement=True)] + WIDTH * torch.randn(count, 2)


def exact_score(x, sigma):
    """grad log sum_k share_k N(x; center_k, width^2 + sigma^2), by differentiating it."""
    x, variance = x.clone().requires_grad_(True), WIDTH**2 + sigma**2
    away = (x[:, None] - CENTERS).square().sum(2)
    density = (SHARES.log() - away / (2 * variance)).logsumexp(1) - x.shape[1] / 2 * variance.log()[:, 0]
    return torch.autograd.grad(density.sum(), x)[0]


class Network(nn.Module):
    """Two hidden layers that see the point, scaled, and log sigma, beside the noise in one normal cloud."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward(self, x, level):
        sigma = LADDER.sigma.float()[level][:, None]
        return sigma * x / (1 + sigma**2) + self.layers(torch.cat([x / (1 + sigma**2).sqrt(), sigma.log()], 1))


def learn(objective, steps):
    with seeded("mixture"):
        network = Network()
        optimizer = torch.optim.Adam(network.parameters(), 1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

        def loss():
            return objective(LADDER, network, points(256))

        train_steps(loss, optimizer, steps, name="mixture", after_step=schedule.step)
    return network


def excess(network):
    """sigma^2 |s - grad log p|^2 over its value for a score of 0, on points of every level."""
    with seeded("points"):
        x, level = points(4000), LADDER.sample_levels(4000, torch.device("cpu"))
        noisy = LADDER.perturb(x, level, LADDER.noise(x, level))
    sigma = LADDER.sigma.float()[level][:, None]
    wanted = exact_score(noisy, sigma)
    with torch.no_grad():
        wrong = score(LADDER, network, noisy, level) - wanted
    return float((sigma * wrong).square().mean() / (sigma * wanted).square().mean())


def test_denoising_learns_the_mixtures_score_and_langevin_dynamics_its_moments():
    network = learn(denoising_loss, 300)
    assert excess(network) < 0.04
    with seeded("samples"):
        x = annealed_langevin(LADDER, network, initial_noise(LADDER, (1500, 2)), steps=50, step=0.2)
    upper = x.sum(1) > 0
    assert float(upper.float().mean()) == pytest.approx(0.75, abs=0.06)
    for side, center in ((upper, 1.0), (~upper, -1.0)):
        assert float(x[side].mean()) == pytest.approx(center, abs=0.08)
        assert float(x[side].std()) == pytest.approx(WIDTH, abs=0.06)


def test_sliced_score_matching_learns_the_mixtures_score():
    assert excess(learn(sliced_loss, 120)) < 0.16
