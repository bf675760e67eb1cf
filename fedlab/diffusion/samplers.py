"""Samplers, from noise to images: DDPM's ancestral step, DDIM's with S of T levels, annealed Langevin dynamics.

Every step works for every schedule, since it uses only the two tables: between levels s < t an image is multiplied by
a = alpha_t / alpha_s and gets noise of variance b^2 = sigma_t^2 - a^2 sigma_s^2 (DDPM: a^2 = 1 - beta_t, b^2 = beta_t;
level -1 is the clean image).

**Source**: Ho, Jain and Abbeel, 2020, equations 6, 7, 11 and algorithm 2; Song, Meng and Ermon, Denoising Diffusion
Implicit Models, ICLR 2021, equations 12 and 16 and appendix D.2 (the levels); Song and Ermon, 2019, algorithm 1;
Jolicoeur-Martineau et al., 2021, for the last denoising step; Nachmani, Roman and Wolf, 2021, algorithm 2.

**Departures**: (1) annealed Langevin has the convention of the paper's algorithm 1, x + alpha/2 s + sqrt(alpha) z, with
alpha = step sigma^2; the paper's eps = 2e-5 is step 0.2, the released code's drift is twice that, step 0.4 here; (2) it
starts from the given tensor: the paper draws uniform pixels, :func:`initial_noise` gives the last level's noise; (3)
DDIM keeps the predicted noise where the image is clipped; (4) the Gamma process's reverse step adds noise of the shape
that the process added between the two levels, centered and of the step's variance.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Literal

import torch
from torch import Tensor

from fedlab.diffusion.denoising import Backbone, noise_estimate, score
from fedlab.diffusion.noise_schedule import NoiseSchedule
from fedlab.errors import ConfigError

SamplerStep = Callable[
    [NoiseSchedule, Tensor, Tensor, int, int], Tensor
]  # schedule, x, predicted noise, level, next level
StepCallback = Callable[[int, int], object]  # passes of the backbone done, and in all


def transition(schedule: NoiseSchedule, level: int, prev_level: int) -> tuple[float, float]:
    """Return the factor a and variance b^2 of the step from ``prev_level`` up to ``level``."""
    (alpha, sigma), (prev_alpha, prev_sigma) = schedule.at(level), schedule.at(prev_level)
    factor = alpha / prev_alpha
    return factor, sigma**2 - (factor * prev_sigma) ** 2


def posterior(schedule: NoiseSchedule, clean: Tensor, x: Tensor, level: int, prev_level: int) -> tuple[Tensor, float]:
    """Return mean, like ``x``, and variance of q(x at ``prev_level`` | x at ``level``, the clean image)."""
    factor, added = transition(schedule, level, prev_level)
    (_, sigma), (prev_alpha, prev_sigma) = schedule.at(level), schedule.at(prev_level)
    mean = (prev_alpha * added * clean + factor * prev_sigma**2 * x) / sigma**2
    return mean, added * (prev_sigma / sigma) ** 2


def predict_x0(schedule: NoiseSchedule, x: Tensor, predicted: Tensor, level: int, *, clip: bool = False) -> Tensor:
    """Return the clean image estimated from ``x`` and the predicted noise; for NCSN it is x + sigma^2 s(x)."""
    alpha, sigma = schedule.at(level)
    clean = (x - sigma * predicted) / alpha
    return clean.clamp(-1, 1) if clip else clean


def ancestral_step(
    schedule: NoiseSchedule,
    x: Tensor,
    predicted: Tensor,
    level: int,
    prev_level: int,
    *,
    variance: Literal["large", "small"] = "large",
    clip: bool = True,
    noise: Tensor | None = None,
) -> Tensor:
    """Return a sample of the model's p(x at ``prev_level`` | x at ``level``).

    Parameters
    ----------
    predicted
        Noise that the backbone predicts in ``x``.
    variance
        "large": b^2, DDPM's beta_t, best for images that are normal pixel by pixel; "small": the posterior's own.
    clip
        Keep the estimated image in [-1, 1].
    noise
        Unit noise like ``x``; None draws it. The step to the clean image adds none.
    """
    mean, small = posterior(schedule, predict_x0(schedule, x, predicted, level, clip=clip), x, level, prev_level)
    if prev_level < 0:
        return mean
    added = transition(schedule, level, prev_level)[1] if variance == "large" else small
    return mean + sqrt(added) * (schedule.step_noise(x, level, prev_level) if noise is None else noise)


def ddim_step(
    schedule: NoiseSchedule,
    x: Tensor,
    predicted: Tensor,
    level: int,
    prev_level: int,
    *,
    eta: float = 0.0,
    clip: bool = True,
    noise: Tensor | None = None,
) -> Tensor:
    """Return DDIM's step (batch, ...): the estimated image, noised to ``prev_level`` with predicted and fresh noise.

    Parameters
    ----------
    eta
        0: no fresh noise, equal initial noise gives equal images; 1: as much as the posterior has.
    clip, noise
        As in :func:`ancestral_step`.
    """
    alpha, sigma = schedule.at(prev_level)
    fresh = eta**2 * posterior(schedule, x, x, level, prev_level)[1]
    after = alpha * predict_x0(schedule, x, predicted, level, clip=clip) + sqrt(max(sigma**2 - fresh, 0.0)) * predicted
    if not fresh:
        return after
    return after + sqrt(fresh) * (schedule.step_noise(x, level, prev_level) if noise is None else noise)


Spacing = Literal["linear", "quadratic", "trailing"]


def timesteps(levels: int, steps: int, spacing: Spacing = "linear") -> list[int]:
    """Return the ``steps`` of ``levels`` that a sampler uses, increasing.

    "linear": floor(i T/S) from 0; "quadratic": floor(c i^2) from 0 to 0.8 T; "trailing": floor((i + 1) T/S) - 1, of
    which the last is T - 1.

    Raises
    ------
    ConfigError
        When there are more steps than levels, none, or quadratic spacing uses one level twice.
    """
    if not 1 <= steps <= levels:
        raise ConfigError(
            f"{steps} sampling steps were asked for and the noise has {levels} levels; ask for 1 to {levels}"
        )
    if spacing != "quadratic":
        shift, last = (1, 1) if spacing == "trailing" else (0, 0)
        return [(step + shift) * levels // steps - last for step in range(steps)]
    predicted = [int(0.8 * levels * (step / max(steps - 1, 1)) ** 2) for step in range(steps)]
    if len(set(predicted)) < steps:
        raise ConfigError(
            f"quadratic spacing of {steps} steps over {levels} levels meets a level twice; take fewer steps"
        )
    return predicted


def initial_noise(schedule: NoiseSchedule, shape: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
    """Return noise of the last level, (batch, ...), float32: the input of a sampler."""
    blank = torch.zeros(shape, device=device)
    last = torch.full((shape[0],), schedule.num_levels - 1, device=device)
    return schedule.at(schedule.num_levels - 1)[1] * schedule.noise(blank, last)


@torch.no_grad()
def sample(
    schedule: NoiseSchedule,
    backbone: Backbone,
    x: Tensor,
    step: SamplerStep,
    steps: int | None = None,
    *,
    on_step: StepCallback | None = None,
) -> Tensor:
    """Return images from noise ``x`` (batch, ...) of the last level by ``steps`` steps, None for one at every level.

    Parameters
    ----------
    step
        ``ancestral_step``, ``ddim_step``, or a partial of one.
    on_step
        Called after each step with the number of passes done and of all.

    Notes
    -----
    DDPM's last levels are all noise, so steps are spaced as published, from below the last level. NCSN's differ in how
    much noise they have, so the last one is used.
    """
    spacing: Spacing = "linear" if schedule.at(schedule.num_levels - 1)[0] < 1 else "trailing"
    levels = timesteps(schedule.num_levels, schedule.num_levels if steps is None else steps, spacing)
    ways = zip(reversed(levels), [*reversed(levels[:-1]), -1], strict=True)
    for done, (level, prev_level) in enumerate(ways, 1):
        x = step(schedule, x, noise_estimate(schedule, backbone, x, _whole(x, level)), level, prev_level)
        if on_step is not None:
            on_step(done, len(levels))
    return x


def langevin_step(x: Tensor, slope: Tensor, alpha: float, noise: Tensor) -> Tensor:
    """Return one unadjusted step from ``x`` (batch, ...) with the score ``slope``, in the paper's convention."""
    return x + alpha / 2 * slope + sqrt(alpha) * noise


@torch.no_grad()
def annealed_langevin(
    schedule: NoiseSchedule,
    backbone: Backbone,
    x: Tensor,
    *,
    steps: int = 100,
    step: float = 0.2,
    denoise: bool = True,
    on_step: StepCallback | None = None,
) -> Tensor:
    """Return images from ``x`` (batch, ...) by ``steps`` Langevin steps a level, from the most noise to the least.

    Parameters
    ----------
    step
        alpha as a fraction of the level's variance, the paper's eps / sigma_L^2; see ``sigmas.best_step``.
    denoise
        Remove the last level's noise at the end; NCSNv2 does, NCSN did not.
    on_step
        As in :func:`sample`.
    """
    for visited_levels, level in enumerate(reversed(range(schedule.num_levels))):
        alpha = step * schedule.at(level)[1] ** 2
        for done in range(1, steps + 1):
            x = langevin_step(x, score(schedule, backbone, x, _whole(x, level)), alpha, torch.randn_like(x))
            if on_step is not None:
                on_step(visited_levels * steps + done, schedule.num_levels * steps)
    return predict_x0(schedule, x, noise_estimate(schedule, backbone, x, _whole(x, 0)), 0) if denoise else x


def _whole(x: Tensor, level: int) -> Tensor:
    """Return one level for all rows, (batch,)."""
    return torch.full((len(x),), level, dtype=torch.int64, device=x.device)
