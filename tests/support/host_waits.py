"""Refuses what would make a GPU wait for the host, or has no place in a CUDA graph, on tensors without values."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS = ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "_unique", "unique_dim", "lift_fresh")


class NoHostWait(TorchDispatchMode):
    """Runs a body whose tensors are on torch's device ``meta``: no value is read, no shape depends on one.

    And no tensor of the CPU takes part: on a GPU it would have to be copied first.
    """

    def __torch_dispatch__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> Any:
        """Call an operation.

        Raises
        ------
        AssertionError
            When it reads values or has a tensor of the CPU.
        """
        name = func.__name__.partition(".")[0]
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        assert not name.startswith(READS), f"{name} waits for the device"
        assert not any(one.is_cpu for one in tensors), f"{name} takes a tensor of the CPU"
        is_mask = name.startswith("index") and any(one.dtype in (torch.bool, torch.uint8) for one in tensors[1:])
        assert not is_mask, f"{name} with a mask has as many results as the mask has true values"
        return func(*args, **(kwargs or {}))
