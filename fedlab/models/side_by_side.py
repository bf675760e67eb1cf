"""Two parts of a network that do not depend on each other, on a GPU at the same time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def side_by_side(one: Callable[[], Any], other: Callable[[], Any]) -> tuple[Any, Any]:
    """Return the results of two functions that do not depend on each other.

    In a CUDA graph their kernels run at the same time, and so do those of their backward passes.
    """
    if not torch.cuda.is_available() or not torch.cuda.is_current_stream_capturing():
        return one(), other()
    here, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(here)
    with torch.cuda.stream(side):
        second = other()
    first = one()
    here.wait_stream(side)
    return first, second
