"""Memory that training many models at once takes, and how many fit."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlab.errors import ConfigError
from fedlab.machine import free_memory

USABLE = 0.7  # fraction of the free memory that a batch of clients may take
# Beyond this a CPU gains nothing: stacked weights leave its cache, and a batched operation waits for memory.
CPU_BYTES = 32 * 2**20


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


def free_bytes(device: torch.device) -> float:
    """Return the memory of a device that is free now, in bytes; infinity where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = free_memory()
    return math.inf if free is None else free


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
            f"option 'vectorize': {clients} clients at once take about {needed / 1e9:.2g} GB, and "
            f"{there / 1e9:.2g} GB are free on {device}; {fits} would fit, or take vectorize=auto"
        )


def measure(device: torch.device, step: Callable[[], object]) -> int:
    """Return the peak of memory during training steps, in bytes.

    On a GPU its allocator tells. On a CPU what autograd keeps at a time for the backward pass is counted, twice, since
    gradients of activations take as much; weights are the caller's to add.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    kept = _KeptBytes()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: _Kept(kept, tensor), lambda held: held.tensor):
        step()
    return 2 * kept.most


class _KeptBytes:
    """Bytes of all storages that autograd keeps, now and at most.

    A storage that is given back may have its address used again, so sums over all that was ever kept would depend on
    the allocator, and with them the number of clients at once and a run's bits.
    """

    def __init__(self) -> None:
        self.uses: Counter[int] = Counter()
        self.now = self.most = 0

    def add(self, address: int, size: int) -> None:
        if not self.uses[address]:
            self.now += size
            self.most = max(self.most, self.now)
        self.uses[address] += 1

    def remove(self, address: int, size: int) -> None:
        self.uses[address] -= 1
        if not self.uses[address]:
            self.now -= size


class _Kept:
    """A tensor that autograd keeps; it counts until autograd drops it."""

    def __init__(self, kept: _KeptBytes, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self.kept, self.tensor, self.storage = kept, tensor, (storage.data_ptr(), storage.nbytes())
        kept.add(*self.storage)

    def __del__(self) -> None:
        self.kept.remove(*self.storage)
