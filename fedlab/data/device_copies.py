"""Copies of stored columns on GPUs, one for each column and GPU of a process."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

FRACTION = 4  # columns may take one part in so many of the memory that is free

_copies: dict[torch.device, WeakTensorKeyDictionary] = {}


def copy_to(columns: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor] | None:
    """Return columns on a GPU, copied if they are not there yet; None if they would take too much of its memory.

    A copy lasts as long as its column.
    """
    known = _copies.setdefault(device, WeakTensorKeyDictionary())
    missing = [column for column in columns.values() if column not in known]
    if missing and sum(column.nbytes for column in missing) > torch.cuda.mem_get_info(device)[0] // FRACTION:
        return None
    for column in missing:
        known[column] = column.to(device)
    return {name: known[column] for name, column in columns.items()}
