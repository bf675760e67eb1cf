"""A comparison's tables as text, the same for a terminal and for Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedlab.runs.progress import elapsed
from fedlab.runs.result import human_bytes, is_share, shown

if TYPE_CHECKING:
    from fedlab.comparison.result import Comparison

MISSING = "-"


@dataclass(frozen=True)
class TextTable:
    """A table: its title, its heads, its rows."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


def tables(comparison: Comparison) -> list[TextTable]:
    """What every comparison shows: scores, scores by domain, and with a target what it costs to reach."""
    found = [scores(comparison), *([] if comparison.is_global else [domains(comparison)])]
    return [*found, reach(comparison)] if comparison.target is not None else found


def scores(comparison: Comparison) -> TextTable:
    """A row for each variant and value of the grid's knobs."""
    share, knobs = is_share(comparison.metric), list(comparison.grid)
    rows = [
        [
            str(row["label"]),
            *(str(row[knob]) or MISSING for knob in knobs),
            plus_minus(row["mean"], row["high"] - row["mean"], share),
            plus_minus(row["difference"], row["difference_high"] - row["difference"], share, signed=True),
            p_value(row["p_holm"]),
            *([share_closed(row["closed"])] if comparison.upper_bound else []),
            _number(row["rank"], ".1f"),
            _number(row["rounds"], ".3g"),
            human_bytes(row["bytes"]),
            elapsed(row["seconds"]),
        ]
        for row in comparison.summary().to_dict("records")
    ]
    gap = ["closed"] if comparison.upper_bound else []
    measured = [comparison.metric, f"vs {comparison.baseline}", "p", *gap, "rank", "rounds", "bytes", "time"]
    heads = ["strategy", *comparison.short_knobs, *measured]
    return TextTable(_title(comparison), heads, rows)


def domains(comparison: Comparison) -> TextTable:
    """The same scores client by client."""
    share, found = is_share(comparison.metric), comparison.domains()
    clients = list(dict.fromkeys(found["client"]))
    by_row: dict[tuple[str, ...], dict[str, str]] = {}
    for row in found.to_dict("records"):
        cells = by_row.setdefault(tuple(str(row[key]) for key in comparison.keys), {})
        cells[row["client"]] = plus_minus(row["mean"], row["high"] - row["mean"], share)
    rows = [
        [key[0], *(part or MISSING for part in key[1:]), *(cells.get(client, MISSING) for client in clients)]
        for key, cells in by_row.items()
    ]
    return TextTable(f"{comparison.metric} by client", ["strategy", *comparison.short_knobs, *clients], rows)


def reach(comparison: Comparison) -> TextTable:
    """What it costs until the mean over clients is at the target."""
    target = comparison.target
    rows = []
    for row in comparison.summary().to_dict("records"):
        known = not math.isnan(row["reach_rounds"])
        rows.append(
            [
                str(row["label"]),
                *(str(row[knob]) or MISSING for knob in comparison.grid),
                MISSING if math.isnan(row["reached"]) else f"{row['reached']:.0f} of {row['n']}",
                _number(row["reach_rounds"], ".3g"),
                human_bytes(row["reach_bytes"]) if known else MISSING,
                elapsed(row["reach_seconds"]) if known else MISSING,
            ]
        )
    heads = ["strategy", *comparison.short_knobs, "seeds that reach it", "rounds", "bytes", "time"]
    return TextTable(f"Until {comparison.metric} is {shown(comparison.metric, target or 0.0)}, mean over seeds", heads, rows)


def plus_minus(mean: float, half: float, share: bool, signed: bool = False) -> str:
    """A mean and half its interval, shares in percent; without an interval the mean alone."""
    if math.isnan(mean):
        return MISSING
    scale, places = (100, ".1f") if share else (1, ".4g")
    text = f"{scale * mean:{'+' if signed else ''}{places}}"
    return text if math.isnan(half) else f"{text} ± {scale * half:{places}}"


def p_value(p: float) -> str:
    """A p-value to three places."""
    return MISSING if math.isnan(p) else "<.001" if p < 0.001 else f"{p:.3f}"


def share_closed(share: float) -> str:
    """The share of a gap that is closed, in percent."""
    return MISSING if math.isnan(share) else f"{100 * share:.0f} %"


def legend(comparison: Comparison) -> str:
    """What the first table's columns are, in a few lines."""
    commits = len(comparison.commits)
    several = f" These cells come from {commits} commits of fedlab." if commits > 1 else ""
    gap = f"closed: of the gap from {comparison.baseline} to {comparison.upper_bound}. " if comparison.upper_bound else ""
    uses_labels = [label for label in comparison.labels if label in comparison.uses_labels]
    labels = f"{', '.join(uses_labels)}: learns from clients' labels, which the others do not have. " if uses_labels else ""
    paired = " and knobs" if comparison.grid else ""
    return (
        f"{labels}± is half a 95 % Student t interval over seeds, not corrected; vs: paired by seed{paired}, p of the "
        f"paired t-test after Holm over all rows. {gap}rank: mean over clients and seeds, 1 is best. bytes and time: "
        f"of training, without tests, mean over seeds.{several}"
    )


def _title(comparison: Comparison) -> str:
    unit = " in percent" if is_share(comparison.metric) else ""
    seeds = ", ".join(map(str, comparison.seeds))
    over = "seeds" if comparison.is_global else "clients and seeds"
    return f"{comparison.preset}: {comparison.metric}{unit} after the last round, mean over {over} {seeds}"


def _number(value: float, places: str) -> str:
    return MISSING if math.isnan(value) else f"{value:{places}}"


def plain(value: Any) -> Any:
    """A value for JSON, which has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
