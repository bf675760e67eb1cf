"""Check for code inside ``torch.func.vmap``, which cannot look at values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def is_mapped(tensor: Tensor) -> bool:
    """Return True for a tensor of any shape that stands for several inside ``vmap``."""
    functorch: Any = torch._C._functorch
    return bool(functorch.is_batchedtensor(tensor))
