"""From noise to images: DDPM's ancestral step, DDIM's with S of T levels, annealed Langevin dynamics.

Every step works for every law, since all it needs of one are its two tables: between levels s < t an image is
multiplied by a = signal_t / signal_s and gets noise of variance b^2 = spread_t^2 - a^2 spread_s^2 (DDPM: a^2 = 1 -
beta_t, b^2 = beta_t; level -1 is the clean image).

**Source**: Ho, Jain and Abbeel, 2020, equations 6, 7, 11 and algorithm 2; Song, Meng and Ermon, Denoising Diffusion
Implicit Models, ICLR 2021, equations 12 and 16 and appendix D.2 (which levels); Song and Ermon, 2019, algorithm 1;
Jolicoeur-Martineau et al., 2021, for the last denoising step; Nachmani, Roman and Wolf, 2021, algorithm 2.

**Departures**: (1) annealed Langevin has the convention of the paper's algorithm 1, x + alpha/2 s + sqrt(alpha) z, with
alpha = step sigma^2; the paper's eps = 2e-5 is step 0.2, the released code's drift is twice that, step 0.4 here; (2) it
starts from what it is given: the paper draws uniform pixels, ``initial_noise`` gives the last level's noise; (3) DDIM keeps the
noise as it was found where the image is clipped; (4) the Gamma chain's step back adds noise of the shape that the
chain added between the two levels, centered and of the step's variance.
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

SamplerStep = Callable[[NoiseSchedule, Tensor, Tensor, int, int], Tensor]  # law, x, found noise, level, next level
StepCallback = Callable[[int, int], object]  # passes of the backbone done, and in all


def untold(done: int, total: int) -> None:
    """Nobody wants to know."""


def transition(schedule: NoiseSchedule, level: int, prev_level: int) -> tuple[float, float]:
    """Factor a and variance b^2 of the way from level ``prev_level`` up to ``level``."""
    (alpha, sigma), (signal_before, spread_before) = schedule.at(level), schedule.at(prev_level)
    factor = alpha / signal_before
    return factor, sigma**2 - (factor * spread_before) ** 2


def posterior(schedule: NoiseSchedule, clean: Tensor, x: Tensor, level: int, prev_level: int) -> tuple[Tensor, float]:
    """Mean, like ``x``, and variance of q(x at ``prev_level`` | x at ``level``, the clean image)."""
    factor, added = transition(schedule, level, prev_level)
    (_, sigma), (signal_before, spread_before) = schedule.at(level), schedule.at(prev_level)
    mean = (signal_before * added * clean + factor * spread_before**2 * x) / sigma**2
    return mean, added * (spread_before / sigma) ** 2


def predict_x0(schedule: NoiseSchedule, x: Tensor, predicted: Tensor, level: int, *, clip: bool = False) -> Tensor:
    """The clean image behind ``x``, given the noise found in it; for NCSN it is x + sigma^2 s(x)."""
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
    """A draw from the model's p(x at ``prev_level`` | x at ``level``).

    Parameters
    ----------
    found
        Noise that the backbone found in ``x``.
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
    """DDIM's step: the estimated image, noised again to ``prev_level`` with the found noise and a share of fresh noise.

    Parameters
    ----------
    eta
        0: no fresh noise, the same start gives the same image; 1: as much as the posterior has.
    clip, noise
        As in ``ancestral_step``.
    """
    alpha, sigma = schedule.at(prev_level)
    fresh = eta**2 * posterior(schedule, x, x, level, prev_level)[1]
    after = alpha * predict_x0(schedule, x, predicted, level, clip=clip) + sqrt(max(sigma**2 - fresh, 0.0)) * predicted
    if not fresh:
        return after
    return after + sqrt(fresh) * (schedule.step_noise(x, level, prev_level) if noise is None else noise)


Spacing = Literal["linear", "quadratic", "trailing"]


def timesteps(levels: int, steps: int, spacing: Spacing = "linear") -> list[int]:
    """Which ``steps`` of ``levels`` a sampler visits, increasing.

    "linear": floor(i T/S) from 0; "quadratic": floor(c i^2) from 0 to 0.8 T; "trailing": floor((i + 1) T/S) - 1, of
    which the last is T - 1.

    Raises
    ------
    ConfigError
        When there are more steps than levels, none, or quadratic spacing meets one level twice.
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
    """Noise of the last level, (batch, ...), float32: what a sampler begins with."""
    blank = torch.zeros(shape, device=device)
    last = torch.full((shape[0],), schedule.levels - 1, device=device)
    return schedule.at(schedule.levels - 1)[1] * schedule.noise(blank, last)


@torch.no_grad()
def sample(
    schedule: NoiseSchedule, backbone: Backbone, x: Tensor, step: SamplerStep, steps: int | None = None, *, tell: StepCallback = untold
) -> Tensor:
    """Images from noise ``x`` (batch, ...) of the last level by ``steps`` steps, None for one at every level.

    ``step`` is ``ancestral_step``, ``ddim_step``, or a partial of one. A chain's last levels are all noise, and it is
    visited as published, from below the last. On a ladder they differ in how much, so there the last is visited.
    """
    spacing: Spacing = "linear" if schedule.at(schedule.levels - 1)[0] < 1 else "trailing"
    levels = timesteps(schedule.levels, schedule.levels if steps is None else steps, spacing)
    ways = zip(reversed(levels), [*reversed(levels[:-1]), -1], strict=True)
    for done, (level, prev_level) in enumerate(ways, 1):
        x = step(schedule, x, noise_estimate(schedule, backbone, x, _whole(x, level)), level, prev_level)
        tell(done, len(levels))
    return x


def langevin_step(x: Tensor, slope: Tensor, alpha: float, noise: Tensor) -> Tensor:
    """One unadjusted step with the score ``slope``, in the paper's convention."""
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
    tell: StepCallback = untold,
) -> Tensor:
    """Images from ``x`` (batch, ...) by ``steps`` Langevin steps at each level, from the most noise to the least.

    Parameters
    ----------
    step
        alpha as a share of the level's variance, the paper's eps / sigma_L^2; ``ladder.best_step`` chooses one.
    denoise
        Take away the last level's noise at the end; NCSNv2 does, NCSN did not.
    """
    for visited_levels, level in enumerate(reversed(range(schedule.levels))):
        alpha = step * schedule.at(level)[1] ** 2
        for done in range(1, steps + 1):
            x = langevin_step(x, score(schedule, backbone, x, _whole(x, level)), alpha, torch.randn_like(x))
            tell(visited_levels * steps + done, schedule.levels * steps)
    return predict_x0(schedule, x, noise_estimate(schedule, backbone, x, _whole(x, 0)), 0) if denoise else x


def _whole(x: Tensor, level: int) -> Tensor:
    """One level for all rows."""
    return torch.full((len(x),), level, dtype=torch.int64, device=x.device)
