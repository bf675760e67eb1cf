"""The variational bound of -log p(image) in bits a dimension, for a DDPM with fixed variances.

    L = KL(q(x_T | x_0) || N(0, I)) + sum over t > 0 of KL(q(x_t-1 | x_t, x_0) || p(x_t-1 | x_t)) - log p(x_0 | x_1)

The last term is the mass that N(mean, variance) gives to the pixel's own of 256 bins, the outer two open.

**Source**: Ho, Jain and Abbeel, 2020, equations 5 and 13 and section 3.3; a bound for images of 256 gray levels.

**Departures**: (1) the first variance is the posterior's of the second level, as in the released code, also where
variances are "small"; (2) estimated images are clipped, as in the released code; (3) one draw of noise a level.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from fedlab.diffusion.denoising import Backbone, noise_estimate
from fedlab.diffusion.noise_schedule import NoiseSchedule
from fedlab.diffusion.samplers import posterior, predict_x0, transition
from fedlab.errors import ConfigError

BIN_HALF_WIDTH = 1 / 255  # half the distance of two gray levels in [-1, 1]


def normal_kl(mean: Tensor, variance: float, other_mean: Tensor | float, other_variance: float) -> Tensor:
    """Return KL(N(mean, variance) || N(other_mean, other_variance)) of each element, in nats."""
    ratio = variance / other_variance
    return (ratio - 1 - math.log(ratio) + (mean - other_mean) ** 2 / other_variance) / 2


def discretized_nll(x: Tensor, mean: Tensor, variance: float) -> Tensor:
    """Return -log of the mass of each pixel's bin under N(mean, variance), in nats; x like mean, in [-1, 1]."""
    scale = variance**0.5
    below = torch.special.log_ndtr((x + BIN_HALF_WIDTH - mean) / scale)
    above = torch.special.log_ndtr((mean + BIN_HALF_WIDTH - x) / scale)
    away = -(x - mean).abs()  # the same mass on the left side, where the tail does not round to 1
    near, far = (torch.special.log_ndtr((away + edge) / scale) for edge in (BIN_HALF_WIDTH, -BIN_HALF_WIDTH))
    inside = near + torch.log1p(-(far - near).exp())
    return -torch.where(x < -0.999, below, torch.where(x > 0.999, above, inside))


@torch.no_grad()
def bits_per_dimension(
    schedule: NoiseSchedule, backbone: Backbone, x: Tensor, variance: Literal["large", "small"] = "large"
) -> Tensor:
    """Return the bound for each image (batch, ...) in [-1, 1], (batch,); one pass of the backbone a level.

    Raises
    ------
    ConfigError
        When the schedule is no Gaussian process that ends in unit noise, or has one level.
    """
    alpha, sigma = schedule.at(schedule.num_levels - 1)
    if not schedule.gaussian or abs(alpha**2 + sigma**2 - 1) > 1e-6 or schedule.num_levels < 2:
        raise ConfigError("the bound is that of DDPM's Gaussian process with at least 2 levels; take law=ddpm")
    exact = x.double()
    nats = normal_kl(alpha * exact, sigma**2, 0.0, 1.0)
    for level in range(schedule.num_levels):
        levels = torch.full((len(x),), level, dtype=torch.int64, device=x.device)
        noisy = schedule.perturb(x, levels, schedule.noise(x, levels))
        predicted = noise_estimate(schedule, backbone, noisy, levels).double()
        mean, _ = posterior(
            schedule,
            predict_x0(schedule, noisy.double(), predicted, level, clip=True),
            noisy.double(),
            level,
            level - 1,
        )
        if level == 0:
            nats = nats + discretized_nll(exact, mean, posterior(schedule, exact, exact, 1, 0)[1])
            continue
        wanted, small = posterior(schedule, exact, noisy.double(), level, level - 1)
        nats = nats + normal_kl(
            wanted, small, mean, transition(schedule, level, level - 1)[1] if variance == "large" else small
        )
    return nats.flatten(1).mean(1) / math.log(2)
