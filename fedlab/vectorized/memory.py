"""Memory that training many models at once takes, and how many fit."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlab.errors import ConfigError

USABLE = 0.7  # fraction of the free memory that a batch of clients may take
# Beyond this a CPU gains nothing: stacked weights leave its cache, and a batched operation waits for memory.
CPU_BYTES = 64 * 2**20


@dataclass(frozen=True)
class ClientMemory:
    """Bytes of so many clients at once, a line through what one and two of them take.

    Attributes
    ----------
    fixed, each
        Bytes whatever the number of clients, and bytes of each.
    """

    fixed: int
    each: int

    @classmethod
    def through(cls, one: int, two: int) -> ClientMemory:
        """Return the line through the bytes of one and of two clients."""
        each = max(two - one, 1)
        return cls(max(one - each, 0), each)

    def bytes(self, clients: int) -> int:
        """Return the bytes of so many clients at once."""
        return self.fixed + self.each * clients

    def largest(self, free: float) -> int:
        """Return the largest number of clients that fit into so many bytes, 0 if none does."""
        return max(0, int((free - self.fixed) // self.each))


def free_bytes(device: torch.device) -> int:
    """Return the memory of a device that is free now, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def suggested_batch(memory: ClientMemory, device: torch.device, free: int | None = None) -> int:
    """Return how many clients to train at once where that is left open, at least 1.

    On a GPU as many as fit; on a CPU as many as its cache may hold.
    """
    usable = USABLE * (free_bytes(device) if free is None else free)
    return max(1, memory.largest(usable if device.type == "cuda" else min(usable, CPU_BYTES)))


def check_batch(clients: int, memory: ClientMemory, device: torch.device, free: int | None = None) -> None:
    """Validate that so many clients at once fit into a device's memory.

    Raises
    ------
    ConfigError
        When they do not, with how many would.
    """
    there = free_bytes(device) if free is None else free
    if (needed := memory.bytes(clients)) > USABLE * there:
        fits = max(1, memory.largest(USABLE * there))
        raise ConfigError(
            f"option 'engine.vectorize': {clients} clients at once take about {needed / 1e9:.2g} GB, and "
            f"{there / 1e9:.2g} GB are free on {device}; {fits} would fit, or take engine.vectorize=auto"
        )


def measure(device: torch.device, step: Callable[[], object]) -> int:
    """Return the peak of memory during a training step, in bytes.

    On a GPU its allocator tells. On a CPU what autograd keeps for the backward pass is counted, twice, since gradients
    of activations take as much; weights are the caller's to add.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        step()
    return 2 * sum(kept.values())
