"""Precision of training: float32, TF32 matrix products, or bfloat16 activations over float32 weights.

=========  =====================================  ======================================================
name       matrix products and convolutions       where
=========  =====================================  ======================================================
float32    in float32                             everywhere
tf32       inputs rounded to 10 bits of mantissa  GPUs of compute capability 8.0 or more, else float32
bf16       in bfloat16, by automatic casting      training losses, and networks that samplers call
auto       tf32                                   as tf32
=========  =====================================  ======================================================

Weights, gradients, optimizers, aggregation and messages are float32 in all of them. Mixtures are estimated in float64,
which neither TF32 nor automatic casting changes.

**Source**: Micikevicius et al., Mixed Precision Training, ICLR 2018; Kalamkar et al., A Study of BFLOAT16 for Deep
Learning Training, 2019, arXiv 1905.12322: no loss scaling is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch

Precision = Literal["float32", "tf32", "bf16"]

TF32_CAPABILITY = (8, 0)
_current: tuple[Precision, str] = ("float32", "cpu")  # of this process, and its type of device


def resolve_precision(name: str, device: torch.device) -> Precision:
    """Return the precision that an option names on a device: "auto", "float32", "tf32" or "bf16"."""
    if name == "bf16":
        return "bf16"
    if name == "float32" or device.type != "cuda" or torch.cuda.get_device_capability(device) < TF32_CAPABILITY:
        return "float32"
    return "tf32"


@contextmanager
def computing_in(name: str, device: torch.device) -> Iterator[None]:
    """Run the body in the precision that an option names, and restore the one before."""
    global _current
    before, precision = _current, resolve_precision(name, device)
    _current = precision, device.type
    with _tf32(precision != "float32" and device.type == "cuda"):  # on a CPU it would allow bfloat16
        try:
            yield
        finally:
            _current = before


def current_precision() -> Precision:
    """Return the precision in which this process computes now."""
    return _current[0]


def autocast() -> AbstractContextManager[object]:
    """Return a context in which a forward pass has this process's precision; without bf16 it changes nothing."""
    if _current[0] != "bf16":
        return nullcontext()
    # a CUDA graph may not keep casts of weights from one step to the next
    return torch.autocast(_current[1], torch.bfloat16, cache_enabled=_current[1] != "cuda")


@contextmanager
def _tf32(on: bool) -> Iterator[None]:
    """Set whether matrix products and convolutions of a GPU may use TF32, and restore the setting afterwards."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if on else "highest")
    torch.backends.cudnn.allow_tf32 = on
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions
