"""Noise schedules: x_t = alpha_t x_0 + sigma_t e, an image mixed with noise at each of a sequence of levels.

``e`` has mean 0 and variance 1 in every pixel. DDPM has alpha^2 + sigma^2 = 1, NCSN has alpha 1; all else of the two
papers is shared: the objective (``denoising.py``), the reverse steps (``samplers.py``) and the bound. For a process
that is not Gaussian, e is a centered Gamma variable, and only the sampling of noise changes.

**Source**: Ho, Jain and Abbeel, Denoising Diffusion Probabilistic Models, NeurIPS 2020, equations 2 and 4; the cosine
schedule of Nichol and Dhariwal, 2021, equation 17; Song and Ermon, 2019, section 4; the Gamma process of Nachmani,
Roman and Wolf, Non Gaussian Denoising Diffusion Models, 2021: g_t ~ Gamma(k_t, theta_t) with theta_t = sqrt(abar_t)
theta_0 and k_t = beta_t / (abar_t theta_0^2), so that steps add up to Gamma(kbar_t, theta_t) with kbar_t =
(1/abar_t - 1) / theta_0^2. That the two papers are one family is the view of Song et al., Score-Based Generative
Modeling through Stochastic Differential Equations, 2021.

**Departures**: (1) levels are numbered from 0, the least noise, up; NCSN's paper counts down from the most; (2) tables
are float64 and read in the type of the images; (3) Gamma noise is drawn in float64, since shapes reach 1e10 and
float32 would round its variance away.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from fedlab.errors import ConfigError


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """Tables of one schedule, each (levels,) float64, level 0 having the least noise.

    Attributes
    ----------
    alpha, sigma
        Factors of the image and of the noise.
    gamma_shape
        kbar_t of the Gamma process; None for Gaussian noise.
    predicts_score
        Backbones give the score itself, as NCSN's of 2019 does, and not the noise in the image.

    Raises
    ------
    ConfigError
        When tables do not match, hold a value that is not positive, or noise does not grow with the level.
    """

    alpha: Tensor
    sigma: Tensor
    gamma_shape: Tensor | None = None
    predicts_score: bool = False

    def __post_init__(self) -> None:
        """Check the tables."""
        if self.alpha.dim() != 1 or self.alpha.shape != self.sigma.shape or not len(self.alpha):
            raise ConfigError(
                f"a noise schedule needs one alpha and one sigma a level, got {tuple(self.alpha.shape)} and "
                f"{tuple(self.sigma.shape)}"
            )
        ratio = self.sigma / self.alpha
        if not (torch.isfinite(ratio).all() and (ratio > 0).all() and (self.alpha > 0).all()):
            raise ConfigError("a noise schedule needs alphas and sigmas that are finite and above 0")
        falls = (ratio.diff() <= 0).nonzero()
        if len(falls):
            level = int(falls[0]) + 1
            raise ConfigError(
                f"noise has to grow with the level, and level {level} has sigma / alpha {ratio[level]:g}, "
                f"level {level - 1} has {ratio[level - 1]:g}; give an increasing schedule"
            )

    @property
    def num_levels(self) -> int:
        """Return the number of levels."""
        return len(self.alpha)

    @property
    def gaussian(self) -> bool:
        """Return True when noise is normal, so that noise and score are equivalent."""
        return self.gamma_shape is None

    def at(self, level: int) -> tuple[float, float]:
        """Return alpha and sigma of one level; level -1 is the clean image."""
        return (1.0, 0.0) if level < 0 else (float(self.alpha[level]), float(self.sigma[level]))

    def sample_levels(self, count: int, device: torch.device) -> Tensor:
        """Return uniform levels (count,), int64, from torch's current stream."""
        return torch.randint(self.num_levels, (count,), device=device)

    def noise(self, like: Tensor, level: Tensor) -> Tensor:
        """Return noise of mean 0 and variance 1 like ``like`` (batch, ...), for the levels (batch,) of its rows."""
        if self.gamma_shape is None:
            return torch.randn_like(like)
        return _centered_gamma(extract(self.gamma_shape, level, like.double()).expand(like.shape)).to(like.dtype)

    def step_noise(self, like: Tensor, level: int, prev_level: int) -> Tensor:
        """Return unit noise like ``like`` as the process adds it between ``prev_level`` (-1: clean) and ``level``."""
        if self.gamma_shape is None:
            return torch.randn_like(like)
        shape = self.gamma_shape[level] - (self.gamma_shape[prev_level] if prev_level >= 0 else 0.0)
        return _centered_gamma(shape.to(like.device).expand(like.shape)).to(like.dtype)

    def perturb(self, x: Tensor, level: Tensor, noise: Tensor) -> Tensor:
        """Return images (batch, ...) mixed with ``noise`` at the levels (batch,)."""
        return extract(self.alpha, level, x) * x + extract(self.sigma, level, x) * noise


def extract(table: Tensor, level: Tensor, like: Tensor) -> Tensor:
    """Return a table's entry for each row of ``like``: (batch, 1, ...) in its type and on its device."""
    values = _table_on(table, like.device)[level].to(like.dtype)
    return values.view(-1, *[1] * (like.dim() - 1))


@lru_cache(maxsize=32)  # a table has one identity; copying it at every step would stop a GPU
def _table_on(table: Tensor, device: torch.device) -> Tensor:
    return table.to(device)


def ddpm_betas(levels: int, largest: float = 0.999) -> Tensor:
    """Return DDPM's linear schedule of betas (levels,), for any number of levels.

    They are those of 1,000 levels times 1,000 / levels, cut at ``largest``, so that the last level is pure noise, as
    samplers assume. **Source**: Nichol and Dhariwal, Improved Denoising Diffusion Probabilistic Models, ICML 2021,
    released code; the cut is their cosine's.
    """
    scale = 1000 / levels
    return torch.linspace(1e-4 * scale, 0.02 * scale, levels, dtype=torch.float64).clamp(max=largest)


def linear_betas(levels: int, first: float = 1e-4, last: float = 0.02) -> Tensor:
    """Return DDPM's schedule: beta_t (levels,) in even steps.

    Raises
    ------
    ConfigError
        When it is not increasing within (0, 1).
    """
    if not 0 < first < last < 1:
        raise ConfigError(
            f"the linear schedule rises from beta {first:g} to {last:g}; 0 < first < last < 1 is expected"
        )
    return torch.linspace(first, last, levels, dtype=torch.float64)


def cosine_betas(levels: int, offset: float = 0.008, largest: float = 0.999) -> Tensor:
    """Return the betas (levels,) of the schedule whose abar_t is a squared cosine, cut at ``largest``."""
    angle = (torch.arange(levels + 1, dtype=torch.float64) / levels + offset) / (1 + offset) * math.pi / 2
    abar = angle.cos() ** 2
    return (1 - abar[1:] / abar[:-1]).clamp(max=largest)


def ddpm_schedule(betas: Tensor, theta: float | None = None) -> NoiseSchedule:
    """Return DDPM's schedule of betas (levels,); with ``theta`` (theta_0 of the paper, there 0.001) the Gamma process.

    Raises
    ------
    ConfigError
        When a beta is outside (0, 1), or theta is not above 0.
    """
    betas = betas.double()
    if not ((betas > 0) & (betas < 1)).all():
        raise ConfigError(
            f"betas lie between {betas.min():g} and {betas.max():g}; each has to be above 0 and below 1, so that noise "
            "grows with the level"
        )
    if theta is not None and not theta > 0:
        raise ConfigError(f"theta is {theta:g}; the scale of Gamma noise has to be above 0")
    abar = (1 - betas).cumprod(0)
    shape = None if theta is None else (1 / abar - 1) / theta**2
    return NoiseSchedule(abar.sqrt(), (1 - abar).sqrt(), shape)


def ncsn_schedule(sigmas: Tensor, *, predicts_score: bool = False) -> NoiseSchedule:
    """Return NCSN's schedule of standard deviations (levels,), the smallest first; see ``sigmas.py``."""
    sigmas = sigmas.double()
    return NoiseSchedule(torch.ones_like(sigmas), sigmas, predicts_score=predicts_score)


def _centered_gamma(shape: Tensor) -> Tensor:
    """Return (g - k) / sqrt(k) for g ~ Gamma(k, 1): mean 0, variance 1, skewness 2 / sqrt(k); float64."""
    sampled = torch.distributions.Gamma(shape, torch.ones_like(shape)).sample()
    return (sampled - shape) / shape.sqrt()
