"""Rows of the one table: what was measured, the goal, and another way beside it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from fedlab.files import write_atomically


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes
    ----------
    part, what
        Where it belongs, and what it is.
    value, unit
        The figure; None where there is none.
    goal
        What it should reach; None: no goal is set.
    at_most
        True when the goal is the largest good value.
    reference, reference_value
        Another way to do the same work, and its figure in the same unit.
    note
        What else is to be known, such as why there is no figure.
    error
        What went wrong, "" where nothing did.
    tally
        True for one of many checks: the table counts those that passed, and shows those that did not.
    """

    part: str
    what: str
    value: float | None = None
    unit: str = ""
    goal: float | None = None
    at_most: bool = False
    reference: str = ""
    reference_value: float | None = None
    note: str = ""
    error: str = ""
    tally: bool = False

    @property
    def reached(self) -> bool | None:
        """True when the goal is reached; None without a goal or a figure."""
        if self.goal is None or self.value is None:
            return None
        return self.value <= self.goal if self.at_most else self.value >= self.goal


def figure(value: float | None) -> str:
    """Return a figure with three or more digits, "" for None.

    >>> [figure(value) for value in (None, 0.51234, 23.456, 12345.6)]
    ['', '0.512', '23.5', '12,346']
    """
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table_of(rows: Sequence[Row], title: str) -> Table:
    """Return the table of all rows; passed checks of a part are counted in one line."""
    table = Table(title=title, title_justify="left")
    for head in ("part", "what", "measured", "goal", "reference", "note"):
        table.add_column(head, justify="right" if head in ("measured", "goal") else "left", overflow="fold")
    passed = Counter(row.part for row in rows if row.tally and not row.error)
    failed = Counter(row.part for row in rows if row.tally and row.error)
    for part in dict.fromkeys(row.part for row in rows):
        if count := passed[part] + failed[part]:
            table.add_row(part, "checks passed", f"{passed[part]}", f"{count}", "", "")
        for row in (row for row in rows if row.part == part and (row.error or not row.tally)):
            table.add_row(*map(escape, cells(row)))
        table.add_section()
    return table


def cells(row: Row) -> list[str]:
    """Return the cells of one row as texts."""
    measured = f"{figure(row.value)} {row.unit}" if row.value is not None else ""
    goal = "" if row.goal is None else f"{'≤' if row.at_most else '≥'} {figure(row.goal)}"
    reached = {None: "", True: " ✓", False: " ✗"}[row.reached]
    reference = f"{row.reference} {figure(row.reference_value)}" if row.reference else ""
    if row.value and row.reference_value:
        reference = f"{reference} ({row.value / row.reference_value:.2f} x)"
    note = "; ".join(text for text in (f"FAILED: {row.error}" if row.error else "", row.note) if text)
    return [row.part, row.what, measured, goal + reached, reference, note]


class Record:
    """All rows so far, in a JSON file from the first on, so that a killed run leaves what it has measured."""

    def __init__(self, path: Path | None, about: Mapping[str, Any]) -> None:
        self.path, self.about, self.rows = path, dict(about), list[Row]()
        self.save()

    def add(self, rows: Iterable[Row]) -> None:
        """Append rows and write the file."""
        self.rows += rows
        self.save()

    def save(self) -> None:
        """Write the file."""
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            content = {**self.about, "rows": [asdict(row) for row in self.rows]}
            write_atomically(self.path, (json.dumps(content, indent=1) + "\n").encode())

    @property
    def failed(self) -> bool:
        """True when something went wrong."""
        return any(row.error for row in self.rows)
