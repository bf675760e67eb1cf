"""The objective that DDPM and NCSN share, the noise in an image, and sliced score matching, an alternative to it.

A backbone takes noisy images (batch, ...) and levels (batch,), int64, and gives a tensor like the images: an estimate
of the unit noise e in them, or of the score when ``schedule.predicts_score``. The two are equivalent by Tweedie's
formula, for Gaussian noise: grad log p_t(x) = -E[e | x] / sigma_t. So DDPM's L_simple, |e - e_theta|^2, and NCSN's
sigma^2 |s_theta + e / sigma|^2 are the same number, and so is the objective of NCSNv2, whose network is divided by
sigma.

**Sliced score matching.** Score matching wants 1/2 E|s - grad log p|^2 without grad log p. Its cross term is
-E[s . grad log p] = -int s . grad p = +int p div s by parts, so up to a constant the objective is

    E[ tr(J_s) + 1/2 |s|^2 ]  =  E_x E_v[ v' J_s v + 1/2 |s|^2 ]    for v with E[v v'] = I:

both terms with a plus; a minus before the first term belongs to the energy, s = -grad E. v' J_s is one product of a
vector with the Jacobian (the Hessian of log p where s is a gradient), one more backward pass.

**Source**: Ho, Jain and Abbeel, 2020, equation 14; Vincent, A Connection Between Score Matching and Denoising
Autoencoders, 2011; Song and Ermon, 2019, equations 2 to 6; Song, Garg, Shi and Ermon, Sliced Score Matching, UAI 2019.

**Departures**: (1) losses are means over dimensions: NCSN's sum with 1/2 is D/2 times as large; (2) the sliced loss has
the factor 2/D and a constant of 1, so that its expectation is the denoising loss itself and both read on one scale; (3)
its term |s|^2 is not projected (the variance-reduced form), directions are signs; (4) DDPM's lower levels are not
weighted; (5) pixels are in [-1, 1] for NCSN too, whose paper has [0, 1]: its sigmas 1 to 0.01 are 2 to 0.02 here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fedlab.diffusion.noise_schedule import NoiseSchedule, extract
from fedlab.errors import ConfigError, DataError

Backbone = Callable[[Tensor, Tensor], Tensor]


def noise_estimate(schedule: NoiseSchedule, backbone: Backbone, x: Tensor, level: Tensor) -> Tensor:
    """Return a backbone's estimate of the unit noise in noisy images (batch, ...) at levels (batch,)."""
    predicted = backbone(x, level)
    return -extract(schedule.sigma, level, x) * predicted if schedule.predicts_score else predicted


def score(schedule: NoiseSchedule, backbone: Backbone, x: Tensor, level: Tensor) -> Tensor:
    """Return the estimated gradient of the log density at noisy images (batch, ...).

    Raises
    ------
    ConfigError
        For Gamma noise, whose expectation is not the score.
    """
    if not schedule.gaussian:
        raise ConfigError(
            "the expected noise gives the score only where noise is Gaussian; take process=ddpm or ncsn, or the "
            "denoising objective and an ancestral or DDIM sampler"
        )
    return -noise_estimate(schedule, backbone, x, level) / extract(schedule.sigma, level, x)


def denoising_errors(schedule: NoiseSchedule, backbone: Backbone, x: Tensor, level: Tensor, noise: Tensor) -> Tensor:
    """Return the mean squared error of the noise estimated in each image (batch, ...), shape (batch,)."""
    predicted = noise_estimate(schedule, backbone, schedule.perturb(x, level, noise), level)
    return (predicted - noise).square().flatten(1).mean(1)


def denoising_loss(schedule: NoiseSchedule, backbone: Backbone, x: Tensor) -> Tensor:
    """Return the mean denoising error, a scalar, at levels and with noise from torch's current stream."""
    level = schedule.sample_levels(len(x), x.device)
    return denoising_errors(schedule, backbone, x, level, schedule.noise(x, level)).mean()


def sliced_loss(schedule: NoiseSchedule, backbone: Backbone, x: Tensor) -> Tensor:
    """Return the loss of sliced score matching of noisy images, a scalar with the same mean as the denoising loss.

    One random direction for each image is drawn.

    Raises
    ------
    ConfigError
        For Gamma noise: the network would learn a score, and samplers need the expected noise.
    """
    level = schedule.sample_levels(len(x), x.device)
    noisy = schedule.perturb(x, level, schedule.noise(x, level)).detach().requires_grad_(True)
    direction = torch.randint(2, noisy.shape, device=x.device).to(x.dtype) * 2 - 1
    predicted = score(schedule, backbone, noisy, level)
    (product,) = torch.autograd.grad((direction * predicted).sum(), noisy, create_graph=True)  # v' J_s
    each = 2 * direction * product + predicted.square()
    return (extract(schedule.sigma, level, x).square() * each).mean() + 1


def check_images(x: Tensor) -> None:
    """Check that images (batch, ...) are in the range that noise schedules are made for; on a CPU only.

    On a GPU every step would wait for the answer.

    Raises
    ------
    DataError
        When a value is not finite or outside [-1, 1].
    """
    if x.device.type != "cpu":
        return
    low, high = x.aminmax()
    if not (low >= -1 and high <= 1):  # not (...) so that NaN is refused, too
        raise DataError(
            f"images hold values from {float(low):g} to {float(high):g}; denoising is made for [-1, 1], so scale bytes "
            "as x / 127.5 - 1"
        )
