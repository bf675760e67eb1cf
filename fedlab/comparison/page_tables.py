"""Tables of a comparison: every variant beside the others.

All numbers are those of :meth:`fedlab.comparison.result.Comparison.summary` and ``domains``, which are also what
``table.csv`` holds; here they are only written for people, and kept whole beside the text for sorting.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedlab.comparison import columns
from fedlab.comparison.best import best_by_client, best_means
from fedlab.report import plots
from fedlab.report.figures import DASHES, REFERENCE, SLOTS
from fedlab.report.run_tables import ColumnHeader, TableCell, TableRow
from fedlab.runs.formatting import MISSING, elapsed, human_bytes, p_value

if TYPE_CHECKING:
    import pandas as pd

    from fedlab.comparison.result import Comparison

# When there are more variants than colors, these tell those of one color apart.
PATTERNS: Sequence[tuple[float, ...]] = ((9, 3), (1, 3), (5, 2, 1, 2, 1, 2), (14, 2))


@dataclass(frozen=True)
class SeriesStyle:
    """A row of the table: its key (label, values of the grid's options), its name for people and its line."""

    key: tuple[str, ...]
    name: str
    slot: int
    dashes: tuple[float, ...]


def variants(comparison: Comparison, table: pd.DataFrame) -> list[SeriesStyle]:
    """Return the rows of a summary in their order: a color a label, gray the baseline's; dashes tell its rows apart."""
    keys = [tuple(str(part) for part in row) for row in table[comparison.keys].itertuples(index=False)]
    others = [label for label in dict.fromkeys(key[0] for key in keys) if label != comparison.baseline]
    rounds, found, used = -(-len(others) // (SLOTS - 1)), [], dict.fromkeys((key[0] for key in keys), 0)
    for key in keys:
        number = others.index(key[0]) if key[0] in others else 0
        slot = 2 + number % (SLOTS - 1) if key[0] in others else REFERENCE
        turn = number // (SLOTS - 1) + max(rounds, 1) * used[key[0]]
        used[key[0]] += 1
        pattern = PATTERNS[(turn - 1) % len(PATTERNS)] if turn else DASHES.get(slot, ())
        found.append(SeriesStyle(key, columns.row_name(comparison, key), slot, tuple(pattern)))
    return found


def variant_heads(comparison: Comparison, key: str) -> list[ColumnHeader]:
    """Return the heads of a row's label and of each option of the grid."""
    names = columns.option_heads(comparison)
    return [ColumnHeader(columns.VARIANT, key), *(ColumnHeader(name, f"{key}-{name}") for name in names)]


def option_cells(comparison: Comparison, style: SeriesStyle) -> list[TableCell]:
    """Return a row's values of the grid's options, sorted as written; one without an effect on it sorts last."""
    pairs = zip(comparison.grid.values(), style.key[1:], strict=True)
    return [
        TableCell(value or MISSING, value=float(values.index(value)) if value else math.nan, as_text=True)
        for values, value in pairs
    ]


# --- numbers for people -----------------------------------------------------------------------------------------------


def margin(low: float, high: float, percent: bool) -> str:
    """Return half the width of an interval, in points of a fraction; "" where there is none."""
    if not math.isfinite(high - low):
        return ""
    half = (high - low) / 2
    return f" ± {100 * half:.1f}" if percent else f" ± {half:.3g}"


def signed(value: float, percent: bool) -> str:
    """Return a difference with its sign, in points of a fraction."""
    if not math.isfinite(value):
        return MISSING
    return (f"{100 * value:+.1f}" if percent else f"{value:+.3g}").replace("-", "\u2212")


def number(value: float, text: str, best: bool = False) -> TableCell:
    """Return a cell that sorts by its value; one without a value sorts last."""
    return TableCell(text, best, float(value)) if math.isfinite(value) else TableCell(MISSING, value=math.nan)


# --- tables -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A column of the summary: its head, the column of numbers behind it, and a row's number for people."""

    head: ColumnHeader
    name: str
    text: Callable[[Mapping[str, Any]], str]


def summary_columns(comparison: Comparison, table: pd.DataFrame) -> list[Column]:
    """Return result, difference, rank and costs; the cost of a target, where there is one; seeds, where some failed."""
    metric, metrics = comparison.metric, comparison.metric_table
    percent = metrics.is_fraction(metric)
    gap = [
        Column(ColumnHeader(columns.GAP, "closed", "descending"), "closed", lambda row: f"{100 * row['closed']:.0f} %")
    ]
    found = [
        Column(
            ColumnHeader(metrics.heading(metric), "mean", better(comparison)),
            "mean",
            lambda row: metrics.format(metric, row["mean"]) + margin(row["low"], row["high"], percent),
        ),
        Column(
            ColumnHeader(columns.DIFFERENCE, "difference", better(comparison)),
            "difference",
            lambda row: signed(row["difference"], percent),
        ),
        Column(ColumnHeader(columns.P_HOLM, "p"), "p_holm", lambda row: p_value(row["p_holm"])),
        *(gap if comparison.upper_bound else []),
        Column(ColumnHeader(columns.RANK, "rank"), "rank", lambda row: f"{row['rank']:.2f}"),
        Column(ColumnHeader(columns.TRAFFIC, "bytes"), "bytes", lambda row: human_bytes(row["bytes"])),
        Column(ColumnHeader(columns.TIME, "time"), "seconds", lambda row: elapsed(row["seconds"])),
    ]
    if comparison.target is not None:
        found += [
            Column(
                ColumnHeader(columns.REACHED, "reached", "descending"),
                "reached",
                lambda row: f"{row['reached']:.0f} of {row['n']}",
            ),
            Column(
                ColumnHeader(columns.TO_ROUNDS, "to-rounds"), "reach_rounds", lambda row: f"{row['reach_rounds']:.1f}"
            ),
            Column(
                ColumnHeader(columns.TO_TRAFFIC, "to-bytes"),
                "reach_bytes",
                lambda row: human_bytes(row["reach_bytes"]),
            ),
            Column(
                ColumnHeader(columns.TO_TIME, "to-time"), "reach_seconds", lambda row: elapsed(row["reach_seconds"])
            ),
        ]
    if (table["n"] != len(comparison.seeds)).any():
        found.append(Column(ColumnHeader("seeds", "seeds", "descending"), "n", lambda row: str(row["n"])))
    return found


def better(comparison: Comparison) -> str:
    """Return the order that puts the best first."""
    return "ascending" if comparison.more_is_better is False else "descending"


def summary_table(
    comparison: Comparison, table: pd.DataFrame, styles: Sequence[SeriesStyle]
) -> tuple[list[ColumnHeader], list[TableRow]]:
    """Return heads, and a row a variant; the best mean is marked."""
    metric, metrics = comparison.metric, comparison.metric_table
    shown, rows = summary_columns(comparison, table), []
    leading = best_means(comparison, table)
    for style, row in zip(styles, records(table), strict=True):
        cells = option_cells(comparison, style) + [
            number(
                row[column.name],
                column.text(row) if math.isfinite(row[column.name]) else MISSING,
                column.name == "mean" and metrics.format(metric, row["mean"]) in leading,
            )
            for column in shown
        ]
        rows.append(TableRow(style.key[0], cells, style.slot))
    return [*variant_heads(comparison, "variant"), *(column.head for column in shown)], rows


def difference_table(
    comparison: Comparison, table: pd.DataFrame, styles: Sequence[SeriesStyle]
) -> tuple[list[ColumnHeader], list[TableRow]]:
    """Return a row a variant that has a baseline to be compared with: the difference by seed, drawn and as numbers."""
    metric = comparison.metric_table.find(comparison.metric)
    percent = comparison.metric_table.is_fraction(metric.name)
    pairs = [pair for pair in zip(styles, records(table), strict=True) if math.isfinite(pair[1]["difference"])]
    scale = plots.axis_range([r[end] for _, r in pairs for end in ("difference", "difference_low", "difference_high")])
    unit = "points" if percent else metric.unit or metric.title
    over_clients = any(math.isfinite(row["p_wilcoxon"]) for _, row in pairs)
    heads = [
        *variant_heads(comparison, "against"),
        ColumnHeader("", ""),
        ColumnHeader(f"{columns.DIFFERENCE}, {unit}", "by", better(comparison)),
        ColumnHeader("95 % interval", ""),
        ColumnHeader(columns.P, "p-plain"),
        ColumnHeader(columns.P_HOLM, "p-corrected"),
        ColumnHeader(columns.EFFECT, "effect", better(comparison)),
        *(
            [
                ColumnHeader(columns.WINS, "wins", "descending"),
                ColumnHeader(columns.P_WILCOXON, "p-wilcoxon-plain"),
                ColumnHeader(columns.P_WILCOXON_HOLM, "p-wilcoxon"),
            ]
            if over_clients
            else []
        ),
    ]
    rows = []
    for style, row in pairs:
        mean, low, high = (row[name] for name in ("difference", "difference_low", "difference_high"))
        known = math.isfinite(high - low)
        between = f"{signed(low, percent)} to {signed(high, percent)}" if known else MISSING
        drawing = plots.forest_plot(mean, low, high, scale, f"{signed(mean, percent)}, interval {between}")
        cells = [
            *option_cells(comparison, style),
            TableCell("", drawing=drawing),
            number(mean, signed(mean, percent)),
            TableCell(between),
            number(row["p"], p_value(row["p"])),
            number(row["p_holm"], p_value(row["p_holm"])),
            number(row["effect"], f"{row['effect']:+.2f}".replace("-", "\u2212")),
        ]
        if over_clients:
            cells += [
                number(row["wins"], f"{row['wins']:.0f} of {row['data_sets']:.0f}"),
                number(row["p_wilcoxon"], p_value(row["p_wilcoxon"])),
                number(row["p_wilcoxon_holm"], p_value(row["p_wilcoxon_holm"])),
            ]
        rows.append(TableRow(style.key[0], cells, style.slot))
    return heads, rows


def heat_table(comparison: Comparison, styles: Sequence[SeriesStyle]) -> tuple[list[ColumnHeader], list[TableRow]]:
    """Return a row a variant, a column a client: the mean over seeds with its interval, colored by its value.

    Of many clients, a column is a row of their distribution.
    """
    metric, metrics = comparison.metric, comparison.metric_table
    percent = metrics.is_fraction(metric)
    breakdown = comparison.breakdown()
    found = {(*(str(row[key]) for key in comparison.keys), row["client"]): row for row in records(breakdown)}
    clients = list(dict.fromkeys(str(key[-1]) for key in found))
    means = [row["mean"] for row in found.values() if math.isfinite(row["mean"])]
    low, high = min(means, default=0.0), max(means, default=0.0)
    leading = best_by_client(comparison, breakdown)
    rows = []
    for style in styles:
        cells = option_cells(comparison, style)
        for client in clients:
            row = found.get((*style.key, client))
            if row is None or not math.isfinite(row["mean"]):
                cells.append(TableCell(MISSING, value=math.nan))
                continue
            text = metrics.format(metric, row["mean"])
            heat = (row["mean"] - low) / (high - low) if high > low else 0.0
            alt = text + margin(row["low"], row["high"], percent)
            cells.append(TableCell(alt, text in leading[client], float(row["mean"]), heat))
        rows.append(TableRow(style.key[0], cells, style.slot))
    return [
        *variant_heads(comparison, "map"),
        *(ColumnHeader(client, f"on {client}", better(comparison)) for client in clients),
    ], rows


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return rows as plain values by name."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]
