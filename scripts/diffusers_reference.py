"""Print what diffusers' schedulers do to given numbers, for tests/fedlab/diffusion/diffusers_0_42_1.json.

diffusers 0.42.1 asks for a huggingface-hub that asks for click 8.4, and Flower's typer for one below; so it lives in an
environment of its own: ``pip install diffusers==0.42.1 torch``, then ``python scripts/diffusers_reference.py > FILE``.
"""

from __future__ import annotations

import json

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

X, FOUND = [0.9, -1.3, 0.2, 2.1, -0.05], [0.4, -0.7, 1.1, 0.3, -1.2]
SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}


def precise(scheduler: DDPMScheduler | DDIMScheduler) -> DDPMScheduler | DDIMScheduler:
    """Its float32 betas, cumulated in float64: in float32 1 - abar of the first levels has three digits."""
    scheduler.betas = scheduler.betas.double()
    scheduler.alphas = 1 - scheduler.betas
    scheduler.alphas_cumprod = scheduler.alphas.cumprod(0)
    return scheduler


def steps(schedule: str) -> dict[str, object]:
    """Betas, one ancestral step of each kind at some levels, and one DDIM step of ten, with noise of ones."""
    x, found = torch.tensor([X], dtype=torch.float64), torch.tensor([FOUND], dtype=torch.float64)
    ancestral, ddim = [], []
    for variance in ("large", "small"):
        for clip in (True, False):
            scheduler = precise(
                DDPMScheduler(1000, beta_schedule=schedule, variance_type=f"fixed_{variance}", clip_sample=clip)
            )
            for level in (1, 500, 999):
                torch.manual_seed(level)
                after = scheduler.step(found, level, x).prev_sample
                torch.manual_seed(level)
                noise = torch.randn(x.shape, dtype=x.dtype)
                ancestral.append([variance, clip, level, noise[0].tolist(), after[0].tolist()])
    for eta in (0.0, 0.5, 1.0):
        for clip in (True, False):
            scheduler = precise(DDIMScheduler(1000, beta_schedule=schedule, clip_sample=clip))
            scheduler.set_timesteps(10)
            for level in (0, 300, 900):
                ones = torch.ones_like(x) if eta else None
                after = scheduler.step(found, level, x, eta=eta, variance_noise=ones).prev_sample
                ddim.append([eta, clip, level, after[0].tolist()])
    return {"betas": scheduler.betas[[0, 1, 10, 500, 998, 999]].tolist(), "ancestral": ancestral, "ddim": ddim}


print(json.dumps({"x": X, "found": FOUND, **{name: steps(theirs) for name, theirs in SCHEDULES.items()}}))
