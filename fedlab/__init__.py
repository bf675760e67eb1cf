"""fedlab: federations whose server owns labelled source data and whose clients own unlabelled target domains."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# A CPU that other processes share is lost for a whole time slice while OpenMP's threads spin for each other: a step
# took three times as long. Waiting asleep costs next to nothing on an idle one. Read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from fedlab.launch import resume, run
    from fedlab.results import Result

__all__ = ["Result", "resume", "run"]


def __getattr__(name: str) -> Any:
    """Import the public functions when they are first used, so that ``import fedlab`` costs nothing."""
    if name in ("run", "resume"):
        from fedlab import launch

        return getattr(launch, name)
    if name == "Result":
        from fedlab.results import Result

        return Result
    raise AttributeError(f"module 'fedlab' has no attribute {name!r}")
