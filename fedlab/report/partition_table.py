"""The table of how a run's examples are split over its clients, from ``split.json`` in its directory.

::

    {"classes": ["cat", "dog"], "clients": [{"name": "usps", "examples": 123, "labels": {"0": 12, "1": 111}}, ...]}

``classes`` has the names of the classes by label, where they have any. ``labels`` is null where a client's labels are
not known; its bar then shows its size alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fedlab.errors import plural
from fedlab.report import plots
from fedlab.report.run_tables import TableCell, TableRow
from fedlab.report.table_csv import address
from fedlab.runs.client_distribution import FEW, QUANTILES, distribution

FILE = "split.json"
EXPLAINED = 40  # classes; a legend of more is longer than its table


@dataclass(frozen=True)
class Share:
    """One client of a split: how many examples, as a bar beside the number, and a bar cut into their classes."""

    name: str
    examples: str
    size: Markup
    classes: Markup | None


@dataclass(frozen=True)
class Split:
    """A table of clients; ``labeled`` says whether bars are cut into classes.

    Of many clients, ``rows`` has the first ones and ``summary`` the distribution over all, with column ``heads``.
    ``csv`` is the address of a CSV file of all of them, with a column for each class. ``legend`` has the color of each
    class and its number and name, where few classes have names.
    """

    rows: list[Share]
    labeled: bool
    clients: int
    csv: Markup
    heads: list[str]
    summary: list[TableRow]
    legend: list[tuple[int, str]]


def read(directory: Path) -> Split | None:
    """Return the split of a run, or None where it wrote none."""
    path = directory / FILE
    return parse(path.read_text(encoding="utf-8")) if path.is_file() else None


def parse(text: str) -> Split:
    """Parse a file's text as a table."""
    table = json.loads(text)
    clients: list[dict[str, Any]] = table["clients"]
    known = dict(zip(map(str, range(len(table.get("classes", ())))), table.get("classes", ()), strict=True))
    labeled = any(client["labels"] for client in clients)
    order = sorted({name for client in clients for name in client["labels"] or ()}, key=_as_number)
    names = {label: str(known.get(label, label)) for label in order}
    most = max((client["examples"] for client in clients), default=0)
    rows = []
    for client in clients[:FEW]:
        name, labels = client["name"], client["labels"]
        examples = f"{client['examples']:,}".replace(",", "\u202f")
        alt = ", ".join(f"{count} of {names[of]}" for of, count in (labels or {}).items())
        classes = plots.label_bar(labels, names, f"{name}: {alt}") if labels else None
        size = plots.size_bar(client["examples"], most, f"{name}: {plural(client['examples'], 'example')}")
        rows.append(Share(name, examples, size, classes))
    lines = [
        [client["name"], client["examples"], *((client["labels"] or {}).get(name, "") for name in order)]
        for client in clients
    ]
    csv = address([["client", "examples", *names.values()], *lines])
    heads, summary = _summary(clients, labeled) if len(clients) > FEW else ([], [])
    legend = [(plots.class_slot(i), f"{label} {name}") for i, (label, name) in enumerate(names.items())]
    named = len(names) <= EXPLAINED and any(label != name for label, name in names.items())
    return Split(rows, labeled, len(clients), csv, heads, summary, legend if named else [])


def _summary(clients: Sequence[Mapping[str, Any]], labeled: bool) -> tuple[list[str], list[TableRow]]:
    """Return heads, and quantiles over clients of their sizes, and of how many classes they have and how unevenly."""
    columns = {"examples": [float(client["examples"]) for client in clients]}
    if labeled:
        counts = [list(client["labels"].values()) for client in clients if client["labels"]]
        columns["classes"] = [float(len(numbers)) for numbers in counts]
        columns["share of the largest class"] = [max(numbers) / sum(numbers) for numbers in counts]
    found = {name: distribution(values, 0) for name, values in columns.items()}
    rows = [
        TableRow(
            row,
            [
                TableCell(f"{100 * of[row]:.0f} %" if "share" in name else f"{of[row]:.4g}")
                for name, of in found.items()
            ],
        )
        for row in ("mean", *QUANTILES)
    ]
    return list(columns), rows


def _as_number(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdigit() else (1 << 30, name)
