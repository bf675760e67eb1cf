"""Errors of torch about a device, as sentences: memory that is full, a missing kernel, no driver. Imports no torch."""

from __future__ import annotations

import re

from fedlab.errors import RunError

SMALLER = (
    "ask for smaller batches (client.batch_size, server.batch_size), fewer clients at once (vectorize, "
    "pool.clients_per_gpu), or device=cpu"
)
FULL_GPU = re.compile(
    r"Tried to allocate ([\d.]+ \w+)\..*?GPU (\d+) .*?capacity of ([\d.]+ \w+).*?([\d.]+ \w+) is free", re.S
)
FULL_CPU = re.compile(r"DefaultCPUAllocator: .*?allocate (\d+) bytes", re.S)
NO_KERNEL = re.compile(r"^(\S+) does not have a deterministic implementation")
TOO_LARGE = "Storage size calculation overflowed"  # torch's, of a tensor of more than 2**63 bytes
NO_DRIVER = ("Found no NVIDIA driver", "No CUDA GPUs are available", "driver on your system is too old")


def device_error_sentence(error: BaseException) -> str:
    """Return what an error of torch about a device means and what to do; empty for any other error.

    >>> device_error_sentence(RuntimeError("max_unpool2d does not have a deterministic implementation, but ..."))[:64]
    'the operation max_unpool2d has no deterministic kernel on a GPU,'
    """
    if not isinstance(error, RuntimeError):
        return ""
    text = str(error)
    if found := FULL_GPU.search(text):
        asked, number, capacity, free = found.groups()
        return f"the memory of GPU {number} is full: {asked} were asked for, {free} of {capacity} are free; {SMALLER}"
    if type(error).__name__ == "OutOfMemoryError":  # torch's, in other words than those above
        return f"the memory of the GPU is full ({text.splitlines()[0] if text else 'no details'}); {SMALLER}"
    if found := FULL_CPU.search(text):
        return (
            f"the memory of this machine is full: {int(found[1]) / 1e9:.1f} GB were asked for; close other programs, "
            "or ask for smaller batches (client.batch_size, server.batch_size)"
        )
    if TOO_LARGE in text:
        return (
            "the memory of no machine would do for a tensor of this size; ask for smaller batches (client.batch_size, "
            "server.batch_size), or a smaller value of the option that the size comes from"
        )
    if found := NO_KERNEL.search(text):
        return (
            f"the operation {found[1]} has no deterministic kernel on a GPU, and a run repeats its bits; use another "
            "operation in the model or loss, or device=cpu"
        )
    if any(words in text for words in NO_DRIVER):
        return f"torch finds no usable GPU ({text.splitlines()[0].rstrip('.')}); install its driver, or set device=cpu"
    return ""


def explained(error: BaseException) -> BaseException:
    """Return an error of torch about a device as a RunError with its sentence, and any other error itself."""
    sentence = device_error_sentence(error)
    return RunError(sentence) if sentence else error
