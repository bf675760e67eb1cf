"""Clipping and averaging of stacked weights, model by model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from fedlab.optimizers import per_row

TINY = 1e-6  # added to a norm, as torch's clip_grad_norm_ does


@torch.no_grad()
def average_each(weights: Iterable[Tensor], batches: int) -> None:
    """Divide gradients (models, ...), sums over so many batches, by their number."""
    if batches > 1:
        torch._foreach_div_([weight.grad for weight in weights if weight.grad is not None], float(batches))


@torch.no_grad()
def clip_each(weights: Iterable[Tensor], max_norm: float) -> None:
    """Scale down the gradients (models, ...) of each model whose norm over all weights exceeds ``max_norm``.

    **Source**: ``torch.nn.utils.clip_grad_norm_``, for each row.
    """
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    if not gradients:
        return
    norms = [
        torch.linalg.vector_norm(gradient.reshape(len(gradient), -1), dim=1) for gradient in gradients
    ]  # (models,) each
    scale = (max_norm / (torch.linalg.vector_norm(torch.stack(norms), dim=0) + TINY)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(per_row(scale, gradient))


@torch.no_grad()
def follow(average: Mapping[str, Tensor], latest: Mapping[str, Tensor], decay: float) -> None:
    """Move averages of stacked weights: average <- decay * average + (1 - decay) * latest."""
    for name, tensor in average.items():
        tensor.lerp_(latest[name], 1.0 - decay)
