"""The table as files: ``table.csv`` and ``table.json`` for programs, ``table.md``, ``.tex`` and a page for people.

Of many clients these show the distribution, and ``clients.csv`` has each client.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedlab.comparison import text_tables
from fedlab.comparison.latex import latex
from fedlab.comparison.result import FIGURES
from fedlab.files import write_atomically

if TYPE_CHECKING:
    from fedlab.comparison.result import Comparison


def write_files(comparison: Comparison) -> None:
    """Write the files into the comparison's folder, each whole or not at all."""
    for name, content in (
        ("table.csv", csv(comparison)),
        ("table.json", as_json(comparison)),
        ("table.md", markdown(comparison)),
        ("table.tex", latex(comparison)),
        *([("clients.csv", clients_csv(comparison))] if comparison.has_many_clients else []),
    ):
        write_atomically(comparison.directory / name, content.encode())
    from fedlab.comparison.page import write_comparison

    write_comparison(comparison)


def write_figures(comparison: Comparison) -> list[Path]:
    """Write the figures of the page as PDF files into ``figures/`` of the folder and return their paths."""
    from fedlab.comparison.learning_curves import named_figures
    from fedlab.report.pdf import write_figures as write_pdf

    return write_pdf(comparison.directory / FIGURES, named_figures(comparison))


def csv(comparison: Comparison) -> str:
    """Return the summary, with a mean and an interval for each client behind it; of many, for their distribution.

    The columns of a client have its name, or ``client_`` and its name where the summary has such a column.
    """
    table, parts, keys = comparison.summary(), comparison.breakdown(), comparison.keys
    for name in dict.fromkeys(parts["client"]):
        stem = name if not {name, f"{name}_low", f"{name}_high"} & set(table.columns) else f"client_{name}"
        columns = {"mean": stem, "low": f"{stem}_low", "high": f"{stem}_high"}
        one = parts[parts["client"] == name][[*keys, *columns]].rename(columns=columns)
        table = table.merge(one, on=keys, how="left")
    return str(table.to_csv(index=False))


def clients_csv(comparison: Comparison) -> str:
    """Return every client's mean and interval, a row a variant and client."""
    return str(comparison.domains().to_csv(index=False))


def as_json(comparison: Comparison) -> str:
    """Return both tables and the facts of the comparison as JSON."""
    return json.dumps(result(comparison), indent=2) + "\n"


def result(comparison: Comparison) -> dict[str, Any]:
    """Return the tables as plain values."""
    return {
        "preset": comparison.preset,
        "metric": comparison.metric,
        "baseline": comparison.baseline,
        "seeds": comparison.seeds,
        "target": comparison.target,
        "budget": comparison.budget,
        "command": comparison.command,
        "commits": comparison.commits,
        "failed": [{"cell": cell.name, "error": cell.error} for cell in comparison.failed],
        "rows": [
            {name: text_tables.plain(value) for name, value in row.items()}
            for row in comparison.summary().to_dict("records")
        ],
        "domains": [
            {name: text_tables.plain(value) for name, value in row.items()}
            for row in comparison.breakdown().to_dict("records")
        ],
    }


def markdown(comparison: Comparison) -> str:
    """Return the tables as Markdown, and the command that makes them."""
    return markdown_text(comparison.command, text_tables.tables(comparison))


def markdown_text(command: str, tables: Sequence[text_tables.TextTable]) -> str:
    """Return tables as Markdown, behind the command that makes them."""
    return "\n\n".join([f"```bash\n{command}\n```", *map(markdown_table, tables)]) + "\n"


def markdown_table(table: text_tables.TextTable) -> str:
    """Return one table in Markdown, its notes below."""
    lines = [f"{table.title}:", "", _line(table.heads), _line(["---"] * len(table.heads)), *map(_line, table.rows)]
    return "\n".join([*lines, *(["", " ".join(table.notes)] if table.notes else [])])


def _line(cells: Any) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(cell: str) -> str:
    text = str(cell).replace("|", "\\|")
    return f"**{text}**" if isinstance(cell, text_tables.Best) else text
