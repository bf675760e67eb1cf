"""fedlab: federations whose server owns labelled source data and whose clients own unlabelled target domains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
