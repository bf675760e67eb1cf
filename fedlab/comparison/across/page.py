"""Strategies over data sets: ``report.html`` of several comparisons, one page that needs no other file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fedlab.comparison import columns
from fedlab.comparison.across import tables
from fedlab.comparison.across.comparison_set import ComparisonSet
from fedlab.comparison.page import script
from fedlab.comparison.page_tables import margin, number, records, signed
from fedlab.errors import plural
from fedlab.report import template
from fedlab.report.charts import Drawing
from fedlab.report.figures import REFERENCE, SLOTS
from fedlab.report.rank_diagram import rank_diagram
from fedlab.report.run_tables import ColumnHeader, TableCell, TableRow
from fedlab.runs.formatting import p_value


def render(found: ComparisonSet, title: str, command: str) -> str:
    """Return the page; ``title`` is the name of its folder, ``command`` the one that makes it."""
    scores, tests = score_table(found), tests_table(found)
    return template.render(
        "across.html",
        title=title,
        summary=summary(found),
        scores=scores,
        tests=tests,
        baseline=found.baseline,
        aside=", ".join(found.uses_labels),
        percent=found.metric_table.is_fraction(found.metric),
        measure=found.metric_table.title(found.metric),
        wilcoxon=columns.wilcoxon_method(found.summary()),
        ranking=tables.ranking_note(found),
        diagram=rank_figure(found),
        left_out=[(variant, ", ".join(names)) for variant, names in found.left_out.items()],
        incomplete=found.incomplete,
        command=command,
        data_sets=[
            (name, comparison.preset, ", ".join(map(str, comparison.seeds)), comparison.command)
            for name, comparison in zip(found.names, found.comparisons, strict=True)
        ],
        **script(),
    )


def summary(found: ComparisonSet) -> str:
    """Return in one sentence which variant is best over the data sets, and if that may be chance."""
    measure, sets = found.metric_table.title(found.metric), f"{len(found.names)} data sets"
    rows = [row for row in records(found.summary()) if math.isfinite(row["rank"])]
    if len(rows) < 2:
        return f"{plural(len(found.variants), 'variant')} on {sets}, by {measure}; {tables.ranking_note(found)}"
    best = min(rows, key=lambda row: float(row["rank"]))
    start = (
        f"Of {len(rows)} variants on {sets}, {best['variant']} has the best mean rank by {measure}: {best['rank']:.2f}"
    )
    if best["variant"] == found.baseline:
        return f"{start}. It is the baseline itself."
    p = p_value(best["p_wilcoxon_holm"])
    p = f"p {p}" if p.startswith("<") else f"p = {p}"
    wins = f"It is better than {found.baseline} on {best['wins']:.0f} of {best['data_sets']:.0f}"
    return f"{start}. {wins} (signed-rank test, {p} after Holm)."


def slots(found: ComparisonSet) -> dict[str, int]:
    """Return the color of each variant, gray for the baseline."""
    others = [variant for variant in found.variants if variant != found.baseline]
    return {found.baseline: REFERENCE, **{name: 2 + at % (SLOTS - 1) for at, name in enumerate(others)}}


def score_table(found: ComparisonSet) -> tuple[list[ColumnHeader], list[TableRow]]:
    """Return heads, and a row a variant: its mean on each data set, the mean of these, and its rank."""
    table, metric = found.metric_table, found.metric
    percent, first = table.is_fraction(metric), "descending" if found.direction > 0 else "ascending"
    heads = [
        ColumnHeader(columns.VARIANT, "variant"),
        *(ColumnHeader(name, f"on {name}", first) for name in found.names),
        ColumnHeader(tables.MEAN, "mean", first),
        ColumnHeader(columns.RANK, "rank"),
    ]
    color, rows = slots(found), []
    for row in records(found.summary()):
        cells = [_score(found, row, name, percent) for name in found.names]
        cells += [number(row["mean"], table.format(metric, row["mean"])), number(row["rank"], f"{row['rank']:.2f}")]
        rows.append(TableRow(row["variant"], cells, color[row["variant"]]))
    return heads, rows


def _score(found: ComparisonSet, row: Mapping[str, Any], name: str, percent: bool) -> TableCell:
    own = found.interval(row["variant"], name)
    text = found.metric_table.format(found.metric, own.mean)
    is_best = row["variant"] in found.ranked and text in tables.best(found, name)
    return number(own.mean, text + margin(own.low, own.high, percent), is_best)


def tests_table(found: ComparisonSet) -> tuple[list[ColumnHeader], list[TableRow]]:
    """Return heads, and a row a variant that is not the baseline: on how many data sets it is better, and p."""
    percent, first = found.metric_table.is_fraction(found.metric), "descending" if found.direction > 0 else "ascending"
    heads = [
        ColumnHeader(columns.VARIANT, "against"),
        ColumnHeader(columns.DIFFERENCE, "difference", first),
        ColumnHeader(columns.WINS, "wins", "descending"),
        ColumnHeader(columns.P_WILCOXON, "p-wilcoxon-plain"),
        ColumnHeader(columns.P_WILCOXON_HOLM, "p-wilcoxon"),
    ]
    color, rows = slots(found), []
    for row in records(found.summary()):
        if row["variant"] == found.baseline:
            continue
        cells = [
            number(row["difference"], signed(row["difference"], percent)),
            number(row["wins"], f"{row['wins']:.0f} of {row['data_sets']:.0f}"),
            number(row["p_wilcoxon"], p_value(row["p_wilcoxon"])),
            number(row["p_wilcoxon_holm"], p_value(row["p_wilcoxon_holm"])),
        ]
        rows.append(TableRow(row["variant"], cells, color[row["variant"]]))
    return heads, rows


def rank_figure(found: ComparisonSet) -> Drawing | None:
    """Return the critical-difference diagram of the variants over the data sets, where there are enough of both."""
    ranking = found.ranking()
    if ranking is None:
        return None
    names, color = found.ranked, slots(found)
    ranks = ", ".join(f"{name} {rank:.2f}" for name, rank in zip(names, ranking.ranks, strict=True))
    alt = f"Mean ranks over {ranking.n} data sets: {ranks}; critical difference {ranking.width:.2f}"
    colors = [color[name] for name in names]
    plot = rank_diagram(names, ranking.ranks, ranking.groups(), ranking.width, colors, alt)
    return Drawing("critical difference", plot)
