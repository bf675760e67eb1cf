"""Finds operations that have no deterministic CUDA kernel while a run goes on a CPU: on a GPU they would end it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

# From torch.use_deterministic_algorithms (torch 2.14), as they are called below autograd. Bilinear interpolation of
# images is not among them: on a GPU, torch takes one that is made of deterministic operations.
NOT_DETERMINISTIC = frozenset(
    {
        *(f"_adaptive_avg_pool{n}d_backward" for n in (2, 3)),
        *(f"adaptive_max_pool{n}d_backward" for n in (2, 3)),
        *(f"fractional_max_pool{n}d_backward" for n in (2, 3)),
        *(f"max_unpool{n}d" for n in (2, 3)),
        *(f"reflection_pad{n}d_backward" for n in (1, 2, 3)),
        *("avg_pool3d_backward", "_embedding_bag_dense_backward", "_ctc_loss_backward"),
        *("upsample_linear1d_backward", "upsample_bicubic2d_backward", "upsample_trilinear3d_backward"),
        *("_upsample_bilinear2d_aa_backward", "_upsample_bicubic2d_aa_backward"),
        *("grid_sampler_2d_backward", "grid_sampler_3d_backward"),
        *("nll_loss2d_forward", "nll_loss2d_backward"),
        *("histc", "kthvalue", "put", "put_"),
        *("median.dim", "median.dim_values", "nanmedian.dim", "nanmedian.dim_values"),
    }
)


class NotDeterministic(TorchDispatchMode):
    """Records the names of such operations that this thread calls, in ``found``."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call an operation, and note its name."""
        name = func.__name__  # with its overload: median.dim
        base = name.partition(".")[0]
        weighted = base == "bincount" and (*args[1:2], (kwargs or {}).get("weights"))[0] is not None
        if weighted or base in NOT_DETERMINISTIC or name in NOT_DETERMINISTIC:
            self.found.add(base)
        return func(*args, **(kwargs or {}))
