"""Sharpness-aware consistency: predictions shall not change where the weights are perturbed to raise the loss.

**Source**: Seo et al., (FL)^2: Overcoming Few Labels in Federated Semi-Supervised Learning, NeurIPS 2024, equations 11
to 13, with the perturbation of Kwon et al., ASAM, ICML 2021, which their code uses. As there, its gradient is that at
the perturbed weights, and the predictions that it compares with get none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, kl_div

ETA = 0.01  # added to the absolute value of a weight, so that one of 0 is perturbed too, as published


def perturbation(weights: Mapping[str, Tensor], gradients: Sequence[Tensor], radius: float) -> dict[str, Tensor]:
    """Return the change of weights, by name, that raises a loss most within a radius relative to their size.

    It is radius T^2 g / |T g| with gradient g and the diagonal T = |w| + 0.01; T is 1 for biases and the like, whose
    names do not have ``weight`` in them. Without a gradient it is 0.

    Examples
    --------
    >>> perturbation({"bias": torch.zeros(2)}, [torch.tensor([3.0, 4.0])], 1.0)
    {'bias': tensor([0.6000, 0.8000])}
    """
    scales = {name: w.detach().abs() + ETA if "weight" in name else torch.ones_like(w) for name, w in weights.items()}
    scaled = {name: scales[name] * g for name, g in zip(weights, gradients, strict=True)}
    norm = torch.stack([g.norm() for g in scaled.values()]).norm().clamp_min(1e-16)
    return {name: scales[name] * g * (radius / norm) for name, g in scaled.items()}


def sharpness_consistency(
    model: nn.Module, x: Tensor, logits: Tensor, classes: Tensor, sure: Tensor, radius: float
) -> Tensor:
    """Return the mean over a batch of KL(p, p of the perturbed weights) of its sure examples; a scalar.

    The weights are perturbed to raise the cross-entropy of the sure examples. Statistics of batch norms are not
    touched.

    Parameters
    ----------
    x, logits
        Inputs (batch, ...) and what the model returned for them (batch, classes), with its graph.
    classes
        Pseudo-labels (batch,).
    sure
        True for the examples that count (batch,).
    radius
        Size of the perturbation.
    """
    weights = {name: w for name, w in model.named_parameters() if w.requires_grad}
    fit = (sure * cross_entropy(logits, classes, reduction="none")).mean()
    gradients = torch.autograd.grad(
        fit, list(weights.values()), retain_graph=True, allow_unused=True, materialize_grads=True
    )
    change = perturbation(weights, gradients, radius)
    perturbed = {name: (w.detach() + change[name]).requires_grad_() for name, w in weights.items()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    found = functional_call(model, {**perturbed, **buffers}, (x,))
    target = logits.detach().softmax(1)
    value = (sure * kl_div(found.log_softmax(1), target, reduction="none").sum(1)).mean()
    slopes = torch.autograd.grad(value, list(perturbed.values()), allow_unused=True, materialize_grads=True)
    # a scalar of this value, whose gradient by the weights is the one at the perturbed weights
    carrier = sum(
        ((g * (w - w.detach())).sum() for g, w in zip(slopes, weights.values(), strict=True)), torch.zeros_like(value)
    )
    return value.detach() + carrier
