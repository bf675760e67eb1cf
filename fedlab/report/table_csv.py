"""Tables of a page as CSV files that the page itself holds, so that it stays one file: addresses of links."""

from __future__ import annotations

import base64
import csv
import io
import math
from collections.abc import Iterable, Sequence

from markupsafe import Markup

from fedlab.report.run_tables import ColumnHeader, TableCell, TableRow
from fedlab.runs.formatting import MISSING

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # with which a spreadsheet takes a text for a formula


def table_address(heads: Sequence[str | ColumnHeader], rows: Iterable[TableRow]) -> Markup:
    """Return the address of a table's CSV: unrounded numbers where cells have them, else texts; no drawings.

    Parameters
    ----------
    heads
        The first one is that of the rows' names; a later one without a text is that of drawings.
    """
    texts = [head.text if isinstance(head, ColumnHeader) else head for head in heads]
    kept = [at for at, text in enumerate(texts) if text or not at]
    lines: list[list[str | float]] = [[*texts], *([row.head, *map(_value, row.cells)] for row in rows)]
    return address([[line[at] for at in kept] for line in lines])


def _value(cell: TableCell) -> str | float:
    if cell.value is not None and not cell.as_text:
        return cell.value if math.isfinite(cell.value) else ""
    return "" if cell.text == MISSING else cell.text


def address(lines: Iterable[Sequence[str | float]]) -> Markup:
    """Return the address of lines as CSV; no text is a formula to a spreadsheet."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([[_safe(value) for value in line] for line in lines])
    content = base64.b64encode(stream.getvalue().encode()).decode()
    return Markup("data:text/csv;charset=utf-8;base64," + content)


def _safe(value: str | float) -> str | float:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) and not _is_number(value) else value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
