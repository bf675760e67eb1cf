"""A comparison's tables as text, the same for a terminal and for Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedlab.comparison import columns, coverage
from fedlab.comparison.best import best_by_client, best_means
from fedlab.runs.client_distribution import WORST
from fedlab.runs.formatting import MISSING, elapsed, human_bytes, p_value

if TYPE_CHECKING:
    from fedlab.comparison.result import Comparison


SHOWN = (WORST, "10 %", "median", "90 %")  # rows of the distribution over many clients that have a column


class Best(str):
    """A cell that is the best of its column, see :mod:`fedlab.comparison.best`."""

    __slots__ = ()


@dataclass(frozen=True)
class TextTable:
    """A table of texts; cells that are :class:`Best` are written in bold, and ``notes`` are sentences about columns."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def tables(comparison: Comparison) -> list[TextTable]:
    """Return the scores, the scores by client, the tests, and with a target the cost to reach it."""
    found = [scores(comparison), *([] if comparison.is_global else [domains(comparison)]), *tests(comparison)]
    return [*found, reach(comparison)] if comparison.target is not None else found


def scores(comparison: Comparison) -> TextTable:
    """Return a row for each variant and value of the grid's options."""
    table, options = comparison.metric_table, comparison.option_columns
    percent, summary = table.is_fraction(comparison.metric), comparison.summary()
    best = best_means(comparison, summary)
    rows = [
        [
            str(row["label"]),
            *(str(row[option]) or MISSING for option in options),
            _mean(comparison, row, best),
            plus_minus(row["difference"], row["difference_high"] - row["difference"], percent, signed=True),
            p_value(row["p_holm"]),
            *([percent_closed(row["closed"])] if comparison.upper_bound else []),
            _number(row["rank"], ".1f"),
            _rounds(row["rounds"]),
            human_bytes(row["bytes"]),
            elapsed(row["seconds"]),
        ]
        for row in summary.to_dict("records")
    ]
    heads = [
        *(columns.VARIANT, *columns.option_heads(comparison)),
        *(table.heading(comparison.metric), columns.DIFFERENCE, columns.P_HOLM),
        *([columns.GAP] if comparison.upper_bound else []),
        *(columns.RANK, columns.ROUNDS, columns.TRAFFIC, columns.TIME),
    ]
    return TextTable(_title(comparison), heads, rows, score_notes(comparison, heads))


def domains(comparison: Comparison) -> TextTable:
    """Return the same scores client by client, or of many clients their distribution."""
    table, found = comparison.metric_table, comparison.breakdown()
    best = best_by_client(comparison, found)
    clients = [name for name in dict.fromkeys(found["client"]) if not comparison.has_many_clients or name in SHOWN]
    by_row: dict[tuple[str, ...], dict[str, str]] = {}
    for row in found.to_dict("records"):
        cells = by_row.setdefault(tuple(str(row[key]) for key in comparison.keys), {})
        cells[row["client"]] = _mean(comparison, row, best[row["client"]])
    rows = [
        [key[0], *(part or MISSING for part in key[1:]), *(cells.get(client, MISSING) for client in clients)]
        for key, cells in by_row.items()
    ]
    what = f"over {comparison.tested_clients} clients" if comparison.has_many_clients else "by client"
    heads = [columns.VARIANT, *columns.option_heads(comparison), *clients]
    return TextTable(f"{table.title(comparison.metric)} {what}", heads, rows, score_notes(comparison, ()))


def tests(comparison: Comparison) -> list[TextTable]:
    """Return the tests of each variant against the baseline, over seeds and over clients; nothing of a single seed."""
    summary = comparison.summary()
    if not summary["p"].notna().any():
        return []
    over_clients = bool(summary["p_wilcoxon"].notna().any())
    rows = [
        [
            str(row["label"]),
            *(str(row[option]) or MISSING for option in comparison.option_columns),
            p_value(row["p"]),
            p_value(row["p_holm"]),
            _number(row["effect"], "+.2f"),
            *(_over_clients(row) if over_clients else []),
        ]
        for row in summary[summary["difference"].notna()].to_dict("records")
    ]
    heads = [columns.VARIANT, *columns.option_heads(comparison), columns.P, columns.P_HOLM, columns.EFFECT]
    heads += [columns.WINS, columns.P_WILCOXON, columns.P_WILCOXON_HOLM] if over_clients else []
    where = "seeds and over clients" if over_clients else "seeds"
    title = f"Tests against {comparison.baseline}, over {where}"
    return [TextTable(title, heads, rows, columns.notes(comparison, heads))]


def _over_clients(row: Mapping[Any, Any]) -> list[str]:
    known = not math.isnan(row["data_sets"])
    wins = f"{row['wins']:.0f} of {row['data_sets']:.0f}" if known else MISSING
    return [wins, p_value(row["p_wilcoxon"]), p_value(row["p_wilcoxon_holm"])]


def reach(comparison: Comparison) -> TextTable:
    """Return the cost until the mean over clients is at the target."""
    table, target = comparison.metric_table, comparison.target or 0.0
    rows = []
    for row in comparison.summary().to_dict("records"):
        known = not math.isnan(row["reach_rounds"])
        rows.append(
            [
                str(row["label"]),
                *(str(row[option]) or MISSING for option in comparison.option_columns),
                MISSING if math.isnan(row["reached"]) else f"{row['reached']:.0f} of {row['n']}",
                _rounds(row["reach_rounds"]),
                human_bytes(row["reach_bytes"]) if known else MISSING,
                elapsed(row["reach_seconds"]) if known else MISSING,
            ]
        )
    heads = [
        *(columns.VARIANT, *columns.option_heads(comparison)),
        *(columns.REACHED, columns.TO_ROUNDS, columns.TO_TRAFFIC, columns.TO_TIME),
    ]
    title = f"Until {table.title(comparison.metric)} is {table.format(comparison.metric, target)}"
    return TextTable(title, heads, rows, columns.notes(comparison, heads))


def _mean(comparison: Comparison, row: Mapping[Any, Any], best: set[str]) -> str:
    """Return a row's mean with half its interval, marked where it is among the best."""
    table, metric = comparison.metric_table, comparison.metric
    text = plus_minus(row["mean"], row["high"] - row["mean"], table.is_fraction(metric))
    return Best(text) if table.format(metric, row["mean"]) in best else text


def plus_minus(mean: float, half: float, percent: bool, signed: bool = False) -> str:
    """Return a mean and half its interval, fractions in percent; without an interval the mean alone."""
    if math.isnan(mean):
        return MISSING
    scale, places = (100, ".1f") if percent else (1, ".4g")
    text = f"{scale * mean:{'+' if signed else ''}{places}}"
    return text if math.isnan(half) else f"{text} ± {scale * half:{places}}"


def percent_closed(fraction: float) -> str:
    """Return the fraction of a gap that is closed, in percent."""
    return MISSING if math.isnan(fraction) else f"{100 * fraction:.0f} %"


def legend(tables: Sequence[TextTable]) -> str:
    """Return what the columns of some tables mean, each sentence once."""
    return " ".join(dict.fromkeys(sentence for table in tables for sentence in table.notes))


def score_notes(comparison: Comparison, heads: Sequence[str]) -> list[str]:
    """Return what the columns of a table of scores mean: means over seeds, the best of which are in bold."""
    uses_labels = ", ".join(label for label in comparison.labels if label in comparison.uses_labels)
    commits = len(comparison.commits)
    unequal = "" if coverage.rivals_have_the_same(comparison) else ", where rows have the same clients and seeds"
    return [
        *([f"{uses_labels}: learns from clients' labels, which the others do not have."] if uses_labels else []),
        f"Bold: the best of a column{f', without {uses_labels}' if uses_labels else ''}{unequal}.",
        "± is half a 95 % Student t interval over seeds, not corrected.",
        *columns.notes(comparison, heads),
        *coverage.notes(comparison),
        *([f"These cells come from {commits} commits of fedlab."] if commits > 1 else []),
    ]


def _title(comparison: Comparison) -> str:
    table, metric = comparison.metric_table, comparison.metric_table.find(comparison.metric)
    unit = " in percent" if table.is_fraction(metric.name) else f" in {metric.unit}" if metric.unit else ""
    better = ", lower is better," if metric.higher_is_better is False else ""
    seeds = ", ".join(map(str, comparison.seeds))
    over = "seeds" if comparison.is_global else "clients and seeds"
    return f"{comparison.preset}: {metric.title}{unit}{better} after the last round, mean over {over} {seeds}"


def _number(value: float, places: str) -> str:
    return MISSING if math.isnan(value) else f"{value:{places}}"


def _rounds(number: float) -> str:
    """Return a mean number of rounds, whole or with one place."""
    return MISSING if math.isnan(number) else f"{number:.1f}".removesuffix(".0")


def plain(value: Any) -> Any:
    """Return a value for JSON, which has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
