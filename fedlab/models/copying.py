"""Copies of a module: those of ``copy.deepcopy``, several times as fast.

A round of many small clients makes a model for each of them, and the general copy takes longer than a small step: it
looks at every attribute of every layer, most of which are flags and empty tables of hooks. Weights that are loaded into
a copy anyway are copied in the place of its own.
"""

from __future__ import annotations

import copyreg
from collections import OrderedDict
from collections.abc import Mapping
from copy import deepcopy
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

IMMUTABLE = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device)
OWN_COPY = ("__deepcopy__", "__getnewargs__", "__getnewargs_ex__")
TABLES = (dict, OrderedDict, set, list)
# A convolution's only adds what files of old versions lack.
USUAL = (nn.Module.__setstate__, nn.Conv2d.__setstate__)
LOADING = ("load_state_dict", "state_dict", "_save_to_state_dict", "get_extra_state", "set_extra_state")
# A batch norm's only adds what files of old versions lack.
USUAL_LOADS = (nn.Module._load_from_state_dict, nn.modules.batchnorm._NormBase._load_from_state_dict)
HOOKS = ("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")


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
    if _copies_itself(kind):
        return deepcopy(module, memo)
    copied: nn.Module = kind.__new__(kind)
    memo[id(module)] = copied
    for name, value in vars(module).items():
        vars(copied)[name] = _value(name, value, memo)
    return copied


def copy_with_state(module: nn.Module, state: Mapping[str, Tensor]) -> nn.Module | None:
    """Return a copy that has loaded a state; None where loading is, or may be, more than to copy tensors of a CPU.

    Parameters
    ----------
    module
        Its structure is looked at once: later changes of it are not seen.
    state
        Tensors with the names and shapes of the module's state.
    """
    if module not in _is_simple:
        _is_simple[module] = _loads_simply(module)
    if not _is_simple[module]:
        return None
    memo: dict[int, Any] = {}
    pairs: list[tuple[nn.Module, nn.Module]] = []
    copied = _structure(module, state, "", memo, pairs)
    for part, own in pairs:
        tables, attributes = dict(vars(own)), vars(own)
        attributes.clear()
        for name, value in vars(part).items():
            attributes[name] = tables[name] if name in tables else _value(name, value, memo)
    return copied


_is_simple: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def _structure(
    module: nn.Module, state: Mapping[str, Tensor], prefix: str, memo: dict[int, Any], pairs: list[Any]
) -> nn.Module:
    """Return a copy with its layers and tensors only; other attributes may refer to any of them, and come later."""
    if id(module) in memo:
        return memo[id(module)]  # type: ignore[no-any-return]
    kind = type(module)
    copied: nn.Module = kind.__new__(kind)
    memo[id(module)] = copied
    pairs.append((module, copied))
    attributes = vars(copied)
    for table in ("_parameters", "_buffers"):
        attributes[table] = {
            key: None if tensor is None else _tensor(tensor, memo, state.get(prefix + key))
            for key, tensor in getattr(module, table).items()
        }
    attributes["_modules"] = {
        key: None if child is None else _structure(child, state, f"{prefix}{key}.", memo, pairs)
        for key, child in module._modules.items()
    }
    return copied


def _loads_simply(module: nn.Module) -> bool:
    """Return True if to load a state into the module is to copy each of its tensors into its place."""
    state = module.state_dict(keep_vars=True)
    if _share_memory(module) or len(set(map(id, state.values()))) != len(state):
        return False
    for part in module.modules():
        kind = type(part)
        usual = kind._load_from_state_dict in USUAL_LOADS
        usual = usual and all(getattr(kind, name) is getattr(nn.Module, name) for name in LOADING)
        tensors = [one for one in (*part._parameters.values(), *part._buffers.values()) if one is not None]
        plain = all(one.is_cpu and (type(one) is nn.Parameter or _is_plain(one)) for one in tensors)
        if not (usual and plain) or _copies_itself(kind) or any(vars(part).get(name) for name in HOOKS):
            return False
    return True


def _copies_itself(kind: type[nn.Module]) -> bool:
    """Return True if a class says itself how its objects are copied."""
    return kind in copyreg.dispatch_table or any(hasattr(kind, name) for name in OWN_COPY) or _own_state(kind)


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


def _tensor(tensor: Tensor, memo: dict[int, Any], value: Tensor | None = None) -> Tensor:
    """Return a copy of a tensor, with another value of its shape if one is given."""
    known = memo.get(id(tensor))
    if known is not None:
        return known  # type: ignore[no-any-return]
    if type(tensor) is nn.Parameter:
        copied: Tensor = nn.Parameter(_data(tensor.detach(), value), tensor.requires_grad)
    elif _is_plain(tensor):
        copied = _data(tensor, value)
    else:
        return deepcopy(tensor, memo)
    memo[id(tensor)] = copied
    return copied


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) is Tensor and not tensor.requires_grad and not vars(tensor)


def _data(tensor: Tensor, value: Tensor | None) -> Tensor:
    """Return a copy of a tensor, or of another value in its type and memory layout."""
    if value is None or (value.dtype == tensor.dtype and value.stride() == tensor.stride() and value.is_cpu):
        return (tensor if value is None else value.detach()).clone(memory_format=torch.preserve_format)
    return torch.empty_like(tensor).copy_(value.detach())
