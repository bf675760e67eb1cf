"""Batch-norm statistics of a domain's own data; weights are not changed.

**Source**: Li et al., Revisiting Batch Normalization for Practical Domain Adaptation (AdaBN), 2016. That such
statistics stay with the client is FedBN (Li et al., ICLR 2021).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from fedlab.data.dataset import ArrayDataset

STATISTICS_BATCH = 250  # about so many inputs at a time, then the mean over batches


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """Return every batch norm of a module that has running statistics."""
    return [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]


def batch_norm_names(module: nn.Module) -> list[str]:
    """Return the state-dict names of everything that belongs to a batch norm: weights, statistics and counter."""
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, _BatchNorm)}
    return [f"{name}.{key}" if name else key for name, layer in layers.items() for key in layer.state_dict()]


def in_units_of_activations(name: str, array: Tensor) -> Tensor:
    """Return an array (...) of a state dict, a running variance as standard deviations (channels,), to compare sizes.

    A variance grows with the square of a domain's activations: that of an honest client on another domain may be a
    hundred times the source's. The sign of a difference of variances is dropped.
    """
    return array.abs().sqrt() if name.rpartition(".")[2] == "running_var" else array


@torch.no_grad()
def recompute_stats(module: nn.Module, batches: Iterable[Tensor], fraction: float = 1.0) -> None:
    """Move all running statistics towards the mean over ``batches`` of the batch statistics.

    A module without batch norms is left alone.

    Parameters
    ----------
    batches
        Inputs (batch, ...); batches of one example are skipped, since they have no variance.
    fraction
        How far, in [0, 1]: new = (1 - fraction) * old + fraction * batch. 1 is AdaBN.
    """
    layers = batch_norms(module)
    if not layers or not fraction:
        return
    old = [{name: buffer.clone() for name, buffer in layer.named_buffers()} for layer in layers]
    momenta = [layer.momentum for layer in layers]
    training = module.training
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean over batches
    module.train()
    own = 0
    for x in batches:
        if len(x) > 1:  # one example has no variance
            module(x)
            own += 1
    module.train(training)
    for layer, momentum, before in zip(layers, momenta, old, strict=True):
        layer.momentum = momentum
        for name in ("running_mean", "running_var"):
            layer.get_buffer(name).lerp_(before[name], 1 - fraction if own else 1.0)


@contextmanager
def frozen_stats(module: nn.Module) -> Iterator[None]:
    """Freeze running statistics and dropout in the body, where batches are normalized as in training.

    So features are those of a mixture that was fitted without dropout.
    """
    layers = batch_norms(module)
    dropping = [layer for layer in module.modules() if isinstance(layer, _DropoutNd) and layer.training]
    for dropout in dropping:
        dropout.eval()
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for dropout in dropping:
            dropout.train()


def adapt_batchnorm(module: nn.Module, data: ArrayDataset, images: int, fraction: float, device: torch.device) -> None:
    """Move a module's statistics towards those of at most ``images`` inputs ``x``, spaced over the data set.

    Parameters
    ----------
    images
        Largest number of inputs.
    fraction
        As in :func:`recompute_stats`.
    """
    some = data.subsample(images)
    batches = max(1, round(len(some) / STATISTICS_BATCH))
    parts = [torch.arange(first, len(some), batches) for first in range(batches)]  # each spread over the whole set
    recompute_stats(module, (some[part]["x"].to(device) for part in parts), fraction)


@torch.no_grad()
def encode(module: nn.Module, data: ArrayDataset, device: torch.device, batch: int = 500) -> Tensor:
    """Return the outputs (examples, ...) of a module for every input ``x``, in evaluation mode, on ``device``."""
    module.eval()
    return torch.cat([module(part["x"].to(device)) for part in data.batches(batch)])
