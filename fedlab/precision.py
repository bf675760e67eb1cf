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
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Literal

import torch

Precision = Literal["float32", "tf32", "bf16"]

TF32_CAPABILITY = (8, 0)
_current: tuple[Precision, str] = ("float32", "cpu")  # of this process, and its type of device
_in_force: tuple[tuple[Precision, str], tuple[str, ...]] | None = None  # that of the innermost scope, and its settings
_BACKENDS: Any = torch.backends  # of whose modules the stubs lack parts
_SETTINGS = (
    _BACKENDS,
    _BACKENDS.cudnn,
    _BACKENDS.cudnn.conv,
    _BACKENDS.cudnn.rnn,
    _BACKENDS.mkldnn.conv,
    _BACKENDS.mkldnn.rnn,
    _BACKENDS.mkldnn.matmul,
    _BACKENDS.cuda.matmul,
)


def resolve_precision(name: str, device: torch.device) -> Precision:
    """Return the precision that an option names on a device: "auto", "float32", "tf32" or "bf16"."""
    if name == "bf16":
        return "bf16"
    if name == "float32" or device.type != "cuda" or torch.cuda.get_device_capability(device) < TF32_CAPABILITY:
        return "float32"
    return "tf32"


class computing_in:
    """Run the body in the precision that an option names, and restore the one before.

    Directly within another such scope, as in each message to a client of a process, a look at the settings is enough.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self._wanted = resolve_precision(name, device), device.type

    def __enter__(self) -> None:
        """Set what is not so already."""
        global _current, _in_force
        self._before, self._stack = (_current, _in_force), ExitStack()
        if _in_force != (self._wanted, _values()):
            gpu = self._wanted[1] == "cuda"
            tf32 = gpu and self._wanted[0] != "float32"  # on a CPU it would allow bfloat16
            products: Literal["high", "highest"] = "high" if tf32 else "highest"
            self._stack.enter_context(float32_settings(products, convolutions=tf32 if gpu else None))
            _in_force = self._wanted, _values()
        _current = self._wanted

    def __exit__(self, *error: object) -> None:
        """Set what was before."""
        global _current, _in_force
        self._stack.close()
        _current, _in_force = self._before


def _values() -> tuple[str, ...]:
    """Return torch's settings of the precision of float32 products and convolutions."""
    return tuple([setting.fp32_precision for setting in _SETTINGS])


def current_precision() -> Precision:
    """Return the precision in which this process computes now."""
    return _current[0]


def autocast() -> AbstractContextManager[object]:
    """Return a context in which a forward pass has this process's precision; without bf16 it changes nothing."""
    if _current[0] != "bf16":
        return nullcontext()
    # a CUDA graph may not keep casts of weights from one step to the next
    return torch.autocast(_current[1], torch.bfloat16, cache_enabled=_current[1] != "cuda")


def outside_autocast() -> AbstractContextManager[object]:
    """Return a context in which a training loss computes what it does not learn from, such as labels, in float32."""
    return torch.autocast(_current[1], enabled=False) if _current[0] == "bf16" else nullcontext()


@contextmanager
def float32_settings(products: Literal["highest", "high"], convolutions: bool | None) -> Iterator[None]:
    """Set how torch computes with float32 inside of products and convolutions, and restore the caller's settings.

    torch has two sets of settings for this, and reading the older one raises an error where a caller has used the newer
    one (``fp32_precision``). So the newer one is brought to values that the older one can have; both agree in the body.

    Parameters
    ----------
    products
        Precision of matrix products, as of ``torch.set_float32_matmul_precision``.
    convolutions
        Whether cuDNN may use TF32; None: no matter.

    **Source**: PyTorch, CUDA semantics, section "TensorFloat-32 on Ampere and later devices".
    """
    backends = _BACKENDS
    with ExitStack() as stack:
        for general in (backends, backends.cudnn):  # first: what inherits from them reads its own value then
            stack.enter_context(_newer_setting(general, "none"))
        for operation in (backends.mkldnn.conv, backends.mkldnn.rnn, backends.mkldnn.matmul, backends.cuda.matmul):
            stack.enter_context(_newer_setting(operation, "ieee", "none"))
        stack.enter_context(_products(products))
        if convolutions is not None:
            for operation in (backends.cudnn.conv, backends.cudnn.rnn):
                stack.enter_context(_newer_setting(operation, "tf32"))
            stack.enter_context(_convolutions(convolutions))
        yield


@contextmanager
def _newer_setting(setting: Any, *allowed: str) -> Iterator[None]:
    """Set the first allowed value of ``fp32_precision`` if it has another one, and restore it afterwards.

    It is not written where nothing changes: torch would no longer inherit it.
    """
    before: str = setting.fp32_precision
    if before not in allowed:
        setting.fp32_precision = allowed[0]
    try:
        yield
    finally:
        if setting.fp32_precision != before:
            setting.fp32_precision = before


@contextmanager
def _products(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    if before != precision:
        torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def _convolutions(tf32: bool) -> Iterator[None]:
    backend = _BACKENDS.cudnn
    try:
        before = backend.allow_tf32
    except RuntimeError:  # the newer settings are "tf32" here, so the older one is not
        before = False
    unchanged = before and tf32
    if not unchanged:
        backend.allow_tf32 = tf32
    try:
        yield
    finally:
        if not (unchanged and backend.conv.fp32_precision == backend.rnn.fp32_precision == "tf32"):
            backend.allow_tf32 = before
