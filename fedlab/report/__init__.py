"""The run at a glance: ``report.html``, self-contained."""

from __future__ import annotations

from fedlab.results import Result


def write_report(result: Result) -> None:
    """Write ``report.html`` into the run directory."""
