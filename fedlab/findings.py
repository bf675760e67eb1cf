"""Findings of ``fedlab doctor``: what a check found, and the remedy where it is bad."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "note", "bad"]
Levels = dict[Status, float]
Check = Callable[[], Iterator["Finding"]]


@dataclass(frozen=True)
class Finding:
    """Result of a check; a bad one always has a remedy."""

    status: Status
    what: str
    remedy: str = ""


def enough(what: str, amount: float, levels: Levels, remedy: str) -> Finding:
    """Return a finding that is bad, or a note, when ``amount`` is below that level; bad is tested first."""
    failed = [level for level, least in levels.items() if amount < least]
    return Finding(failed[0], what, remedy) if failed else Finding("ok", what)
