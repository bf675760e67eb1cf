"""Seconds of training steps on a device that works on while the host goes ahead."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from fedlab.optimizers import Optimizer


def seconds_of(loss: Callable[[], Tensor], optimizer: Optimizer, steps: int, device: torch.device) -> float:
    """Return the seconds of so many gradient steps on a loss, until the device has done them."""
    begun = time.perf_counter()
    for _ in range(steps):
        value = loss()
        optimizer.zero_grad()
        torch.autograd.backward(value)
        optimizer.step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun
