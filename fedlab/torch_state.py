"""State of torch that a caller may have changed and a run depends on: set for the run, and restored after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

DEVICE_TYPES = ("cpu", "cuda")
SUBNORMAL = 1e-40


@contextmanager
def usual_torch_state() -> Iterator[None]:
    """Run the body with torch as a fresh process has it, and restore the caller's state afterwards.

    These are set: default dtype float32, default device the CPU, gradients on, inference mode and autocast off, float32
    matrix products in full precision, subnormal numbers kept, oneDNN on.
    """
    dtype, precision = torch.get_default_dtype(), torch.get_float32_matmul_precision()
    onednn, tf32 = torch.backends.mkldnn.enabled, torch.backends.cudnn.allow_tf32
    flushes = not float(torch.tensor([SUBNORMAL], dtype=torch.float32, device="cpu") * 1)  # torch does not tell
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in DEVICE_TYPES:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.mkldnn.enabled = True  # type: ignore[assignment]
        torch.set_flush_denormal(False)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            torch.set_float32_matmul_precision(precision)
            torch.backends.mkldnn.enabled, torch.backends.cudnn.allow_tf32 = onednn, tf32
            torch.set_flush_denormal(flushes)
