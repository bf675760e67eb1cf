"""Copies of a module: those of ``copy.deepcopy``, several times as fast.

A round of many small clients makes a model for each of them, and the general copy takes longer than a small step: it
looks at every attribute of every layer, most of which are flags and empty tables of hooks.
"""

from __future__ import annotations

import copyreg
from collections import OrderedDict
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

IMMUTABLE = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device)
OWN_COPY = ("__deepcopy__", "__getnewargs__", "__getnewargs_ex__")
TABLES = (dict, OrderedDict, set, list)
# A convolution's only adds what files of old versions lack.
USUAL = (nn.Module.__setstate__, nn.Conv2d.__setstate__)


def copy_module(module: nn.Module) -> nn.Module:
    """Return a copy that shares nothing with the module; whatever the module holds twice, the copy holds twice.

    A layer or a tensor that says itself how it is copied is copied that way.
    """
    return deepcopy(module) if _share_memory(module) else _module(module, {})


def _share_memory(module: nn.Module) -> bool:
    """Return True if two tensors of a module are parts of one piece of memory."""
    places = [one.untyped_storage().data_ptr() for one in (*module.parameters(), *module.buffers()) if one.numel()]
    return len(places) != len(set(places))


def _module(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    if id(module) in memo:
        return memo[id(module)]  # type: ignore[no-any-return]
    kind = type(module)
    if kind in copyreg.dispatch_table or any(hasattr(kind, name) for name in OWN_COPY) or _own_state(kind):
        return deepcopy(module, memo)
    copied: nn.Module = kind.__new__(kind)
    memo[id(module)] = copied
    for name, value in vars(module).items():
        vars(copied)[name] = _value(name, value, memo)
    return copied


def _own_state(kind: type[nn.Module]) -> bool:
    """Return True if a class replaces how its objects are taken apart or put together."""
    if kind.__reduce_ex__ is not object.__reduce_ex__ or kind.__reduce__ is not object.__reduce__:
        return True
    taken_apart = getattr(kind, "__getstate__", None) is not getattr(nn.Module, "__getstate__", None)
    return taken_apart or kind.__setstate__ not in USUAL


def _value(name: str, value: Any, memo: dict[int, Any]) -> Any:
    if type(value) in IMMUTABLE:
        return value
    if type(value) in TABLES and not value:
        return type(value)()
    if name == "_modules":
        return {key: None if child is None else _module(child, memo) for key, child in value.items()}
    if name in ("_parameters", "_buffers"):
        return {key: None if tensor is None else _tensor(tensor, memo) for key, tensor in value.items()}
    return deepcopy(value, memo)


def _tensor(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    known = memo.get(id(tensor))
    if known is not None:
        return known  # type: ignore[no-any-return]
    if type(tensor) is nn.Parameter:
        data = tensor.detach().clone(memory_format=torch.preserve_format)
        copied: Tensor = nn.Parameter(data, tensor.requires_grad)
    elif type(tensor) is Tensor and not tensor.requires_grad and not vars(tensor):
        copied = tensor.clone(memory_format=torch.preserve_format)
    else:
        return deepcopy(tensor, memo)
    memo[id(tensor)] = copied
    return copied
