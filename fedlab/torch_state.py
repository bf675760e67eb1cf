"""State of torch that a caller may have changed and a run depends on: set for the run, and restored after it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from fedlab.precision import float32_settings

DEVICE_TYPES = ("cpu", "cuda")
SUBNORMAL = 1e-40


@contextmanager
def usual_torch_state() -> Iterator[None]:
    """Run the body with torch as a fresh process has it, and restore the caller's state afterwards.

    These are set: default dtype float32, default device the CPU, gradients on, inference mode and autocast off, float32
    matrix products in full precision, subnormal numbers kept, oneDNN on. Threads whose bodies overlap share the part of
    this that a process has once: the first one sets it, and the last one restores it.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in DEVICE_TYPES:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(_subnormals_kept())
        stack.enter_context(_process_settings())
        yield


@contextmanager
def _subnormals_kept() -> Iterator[None]:
    """Keep subnormal numbers in this thread; each thread has a setting of its own."""
    flushes = not float(torch.tensor([SUBNORMAL], dtype=torch.float32, device="cpu") * 1)  # torch does not tell
    torch.set_flush_denormal(False)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushes)


class _Threads:
    """Number of threads that are in a body, how deep each is, and what the last one restores."""

    lock = threading.Lock()
    inside = 0
    restored_by_last: ExitStack
    depth = threading.local()


@contextmanager
def _process_settings() -> Iterator[None]:
    """Set what a process has once.

    Restoring it in each thread would be wrong: a second thread may enter while a run of the first one has its own
    settings, and would put those back at its end.
    """
    depth = getattr(_Threads.depth, "value", 0)
    _Threads.depth.value = depth + 1
    try:
        with _settings() if depth else _settings_of_all_threads():
            yield
    finally:
        _Threads.depth.value = depth


@contextmanager
def _settings_of_all_threads() -> Iterator[None]:
    with _Threads.lock:
        if _Threads.inside == 0:
            _Threads.restored_by_last = ExitStack()
            _Threads.restored_by_last.enter_context(_settings())
        _Threads.inside += 1
    try:
        yield
    finally:
        with _Threads.lock:
            _Threads.inside -= 1
            if _Threads.inside == 0:
                _Threads.restored_by_last.close()


@contextmanager
def _settings() -> Iterator[None]:
    dtype, onednn = torch.get_default_dtype(), torch.backends.mkldnn.enabled
    torch.set_default_dtype(torch.float32)
    torch.backends.mkldnn.enabled = True  # type: ignore[assignment]
    try:
        with float32_settings("highest", convolutions=True):
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.backends.mkldnn.enabled = onednn
