"""fedlab: federations whose server owns labelled source data and whose clients own unlabelled target domains."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# OpenMP's threads spin while they wait for each other; where other processes want the CPUs, that costs time slices.
# Spinning briefly is as fast on an idle machine and faster on a busy one (`python -m benchmarks.threads`). It is read
# when torch is first imported.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

if TYPE_CHECKING:
    from fedlab.comparison.result import Comparison
    from fedlab.comparison.runner import compare
    from fedlab.launch import resume, run
    from fedlab.runs.result import Result

__all__ = ["Comparison", "Result", "compare", "resume", "run"]


def __getattr__(name: str) -> Any:
    """Import the public functions when they are first used, so that ``import fedlab`` costs nothing."""
    if name in ("run", "resume"):
        from fedlab import launch

        return getattr(launch, name)
    if name == "Result":
        from fedlab.runs.result import Result

        return Result
    if name == "compare":
        from fedlab.comparison.runner import compare

        return compare
    if name == "Comparison":
        from fedlab.comparison.result import Comparison

        return Comparison
    raise AttributeError(f"module 'fedlab' has no attribute {name!r}")
