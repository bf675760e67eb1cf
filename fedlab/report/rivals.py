"""Tables and figures of a comparison: every variant beside the others.

All numbers are those of :meth:`fedlab.comparing.comparison.Comparison.summary` and ``domains``, which are also what
``table.csv`` holds; here they are only written for people, and kept whole beside the text for sorting.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedlab.report import maps
from fedlab.report.charts import PANELS, Drawing, Key
from fedlab.report.figures import DASHES, REFERENCE, SLOTS, Curve, Trace, limits, panel, paths
from fedlab.report.page import MISSING, Cell, Head, Row
from fedlab.results import human_bytes, is_share, shown
from fedlab.watch import elapsed

if TYPE_CHECKING:
    import pandas as pd

    from fedlab.comparing.comparison import Comparison

# When there are more variants than colours, these tell those of one colour apart.
PATTERNS: Sequence[tuple[float, ...]] = ((9, 3), (1, 3), (5, 2, 1, 2, 1, 2), (14, 2))
BOUNDS = (0.0, 1.0)


@dataclass(frozen=True)
class Variant:
    """A row of the table: its key (label, values of the grid's knobs), its name for people and its line."""

    key: tuple[str, ...]
    name: str
    slot: int
    dashes: tuple[float, ...]


def variants(comparison: Comparison, table: pd.DataFrame) -> list[Variant]:
    """The rows of a summary in their order; the baseline is grey."""
    found, others, references = [], 0, 0
    for key in (tuple(str(part) for part in row) for row in table[comparison.keys].itertuples(index=False)):
        if key[0] == comparison.baseline:
            slot, turn, references = REFERENCE, references, references + 1
        else:
            slot, turn, others = 2 + others % (SLOTS - 1), others // (SLOTS - 1), others + 1
        pattern = PATTERNS[(turn - 1) % len(PATTERNS)] if turn else DASHES.get(slot, ())
        found.append(Variant(key, name_of(comparison, key), slot, tuple(pattern)))
    return found


def name_of(comparison: Comparison, key: Sequence[str]) -> str:
    """A variant's name: its label, and the knobs of the grid that have an effect on it."""
    return ", ".join([key[0], *(f"{knob}={value}" for knob, value in zip(comparison.grid, key[1:], strict=True) if value)])


# --- numbers for people -----------------------------------------------------------------------------------------------


def margin(metric: str, low: float, high: float) -> str:
    """Half the width of an interval, in points of a share; nothing where there is none."""
    if not math.isfinite(high - low):
        return ""
    half = (high - low) / 2
    return f" ± {100 * half:.1f}" if is_share(metric) else f" ± {half:.3g}"


def signed(metric: str, value: float) -> str:
    """A difference with its sign, in points of a share."""
    if not math.isfinite(value):
        return MISSING
    return (f"{100 * value:+.1f}" if is_share(metric) else f"{value:+.3g}").replace("-", "\u2212")


def p_value(p: float) -> str:
    """A p-value with no more digits than it deserves."""
    return MISSING if not math.isfinite(p) else "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def number(value: float, text: Callable[[float], str], best: bool = False) -> Cell:
    """A cell that sorts by its value; one without a value sorts last."""
    return Cell(text(value), best, float(value)) if math.isfinite(value) else Cell(MISSING, value=math.nan)


# --- tables -----------------------------------------------------------------------------------------------------------


def summary_table(comparison: Comparison, table: pd.DataFrame, lines: Sequence[Variant]) -> tuple[list[Head], list[Row]]:
    """Heads, and a row a variant: mean over clients and seeds, difference, rank, costs."""
    metric, up = comparison.metric, comparison.more_is_better
    better = "ascending" if up is False else "descending"
    heads = [
        Head("variant", "variant"),
        Head(metric, "mean", better),
        Head("difference", "difference", better),
        Head("p, corrected", "p"),
        Head("mean rank", "rank"),
        Head("traffic", "bytes"),
        Head("time", "time"),
    ]
    if comparison.target is not None:
        heads += [Head("reached", "reached", "descending")]
        heads += [Head(f"{what} to target", f"reach-{what}") for what in ("rounds", "traffic", "time")]
    uneven = bool((table["n"] != len(comparison.seeds)).any())
    heads += [Head("seeds", "seeds", "descending")] if uneven else []
    leading = best_as_shown(metric, table["mean"], up)
    rows = []
    for line, row in zip(lines, records(table), strict=True):
        cells = [
            number(row["mean"], lambda v, r=row: shown(metric, v) + margin(metric, r["low"], r["high"])),  # type: ignore[misc]
            number(row["difference"], lambda v: signed(metric, v)),
            number(row["p_holm"], p_value),
            number(row["rank"], lambda v: f"{v:.2f}"),
            number(row["bytes"], human_bytes),
            number(row["seconds"], elapsed),
        ]
        if shown(metric, row["mean"]) in leading:
            cells[0] = Cell(cells[0].text, True, cells[0].value)
        if comparison.target is not None:
            cells.append(number(row["reached"], lambda v, n=row["n"]: f"{v:.0f} of {n}"))  # type: ignore[misc]
            cells.append(number(row["reach_rounds"], lambda v: f"{v:.1f}"))
            cells.append(number(row["reach_bytes"], human_bytes))
            cells.append(number(row["reach_seconds"], elapsed))
        if uneven:
            cells.append(number(row["n"], lambda v: f"{v:.0f}"))
        rows.append(Row(line.name, cells, line.slot))
    return heads, rows


def difference_table(
    comparison: Comparison, table: pd.DataFrame, lines: Sequence[Variant]
) -> tuple[list[Head], list[Row]]:
    """A row a variant that has a baseline to be compared with: the difference by seed, drawn and as numbers."""
    metric = comparison.metric
    pairs = [pair for pair in zip(lines, records(table), strict=True) if math.isfinite(pair[1]["difference"])]
    scale = maps.span([r[end] for _, r in pairs for end in ("difference", "difference_low", "difference_high")])
    better = "ascending" if comparison.more_is_better is False else "descending"
    unit = "points" if is_share(metric) else metric
    heads = [
        Head("variant", "against"),
        Head("", ""),
        Head(f"difference, {unit}", "by", better),
        Head("95 % interval", ""),
        Head("p", "p-plain"),
        Head("p, corrected", "p-corrected"),
    ]
    rows = []
    for line, row in pairs:
        mean, low, high = (row[name] for name in ("difference", "difference_low", "difference_high"))
        known = math.isfinite(high - low)
        between = f"{signed(metric, low)} to {signed(metric, high)}" if known else MISSING
        drawing = maps.forest(mean, low, high, scale, f"{signed(metric, mean)}, interval {between}")
        cells = [
            Cell("", drawing=drawing),
            number(mean, lambda v: signed(metric, v)),
            Cell(between),
            number(row["p"], p_value),
            number(row["p_holm"], p_value),
        ]
        rows.append(Row(line.name, cells, line.slot))
    return heads, rows


def heat_table(comparison: Comparison, lines: Sequence[Variant]) -> tuple[list[Head], list[Row]]:
    """A row a variant, a column a client: the mean over seeds with its interval, coloured by its value."""
    metric, up = comparison.metric, comparison.more_is_better
    found = {
        (*(str(row[key]) for key in comparison.keys), row["client"]): row for row in records(comparison.domains())
    }
    clients = client_names(comparison)
    means = [row["mean"] for row in found.values() if math.isfinite(row["mean"])]
    low, high = min(means, default=0.0), max(means, default=0.0)
    leading = {
        client: best_as_shown(metric, [row["mean"] for key, row in found.items() if key[-1] == client], up)
        for client in clients
    }
    rows = []
    for line in lines:
        cells = []
        for client in clients:
            row = found.get((*line.key, client))
            if row is None or not math.isfinite(row["mean"]):
                cells.append(Cell(MISSING, value=math.nan))
                continue
            text = shown(metric, row["mean"])
            heat = (row["mean"] - low) / (high - low) if high > low else 0.0
            words = text + margin(metric, row["low"], row["high"])
            cells.append(Cell(words, text in leading[client], float(row["mean"]), heat))
        rows.append(Row(line.name, cells, line.slot))
    better = "ascending" if up is False else "descending"
    return [Head("variant", "map"), *(Head(client, f"on {client}", better) for client in clients)], rows


def best_as_shown(metric: str, values: Sequence[float], up: bool | None) -> set[str]:
    """The best of several values as it is written; equal as shown is equal. Nothing where better is not known."""
    known = [float(value) for value in values if math.isfinite(value)]
    if up is None or len(known) < 2:
        return set()
    return {shown(metric, max(known) if up else min(known))}


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain values by name."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def client_names(comparison: Comparison) -> list[str]:
    """Every client that was ever there."""
    return list(dict.fromkeys(comparison.frame["client"]))


# --- figures ----------------------------------------------------------------------------------------------------------


def legend(lines: Sequence[Variant]) -> list[Key]:
    """A line for each variant."""
    return [Key(line.name, line.slot, " ".join(f"{part:g}" for part in line.dashes) or "none") for line in lines]


def curve_figures(comparison: Comparison, lines: Sequence[Variant]) -> list[Drawing]:
    """The metric by round: the mean over clients, then client by client; a band from the lowest seed to the highest."""
    frame, keys = comparison.frame, comparison.keys
    rounds = sorted(int(number) for number in frame["round"].unique())
    parts = {"mean over clients": comparison.curves} if len(client_names(comparison)) > 1 else {}
    parts |= {client: frame[frame["client"] == client] for client in client_names(comparison)[:PANELS]}
    panels = {title: [_curve(part, keys, line, rounds) for line in lines] for title, part in parts.items()}
    share = is_share(comparison.metric)
    ranges = limits([_with_bands(curves) for curves in panels.values()], BOUNDS if share else (-math.inf, math.inf))
    drawings = []
    for i, ((title, curves), within) in enumerate(zip(panels.items(), ranges, strict=True)):
        ends = (f"{c.label} {_last(comparison.metric, c.values)}" for c in curves)
        words = f"{comparison.metric} by round, {title}; at the end {', '.join(ends)}"
        drawings.append(Drawing(title, panel(f"curve-{i}", rounds, curves, within=within, share=share, words=words)))
    return drawings


def _curve(part: pd.DataFrame, keys: Sequence[str], line: Variant, rounds: Sequence[int]) -> Curve:
    own = _own(part, keys, line)
    by_round = own.groupby("round")["score"].agg(["mean", "min", "max"]).reindex(rounds)
    band = (by_round["min"].tolist(), by_round["max"].tolist()) if own["seed"].nunique() > 1 else None
    return Curve(line.name, line.slot, by_round["mean"].tolist(), dashes=line.dashes, band=band)


def _own(part: pd.DataFrame, keys: Sequence[str], line: Variant) -> pd.DataFrame:
    for name, value in zip(keys, line.key, strict=True):
        part = part[part[name].astype(str) == value]
    return part


def _with_bands(curves: Sequence[Curve]) -> list[Curve]:
    """Curves and the edges of their bands, for the range of an axis."""
    edges = [Curve(c.label, c.slot, list(edge)) for c in curves if c.band for edge in c.band]
    return [*curves, *edges]


def _last(metric: str, values: Sequence[float]) -> str:
    known = [value for value in values if math.isfinite(value)]
    return shown(metric, known[-1]) if known else "nothing"


def cost_figures(comparison: Comparison, lines: Sequence[Variant]) -> list[Drawing]:
    """The mean over clients by what it has cost so far: bytes of training, and seconds without tests."""
    curves = comparison.curves
    means = {
        line: _own(curves, comparison.keys, line).groupby("round")[["score", "bytes", "seconds"]].mean()
        for line in lines
    }
    share = is_share(comparison.metric)
    scores = [Curve(line.name, line.slot, part["score"].tolist()) for line, part in means.items()]
    within = limits([scores], BOUNDS if share else (-math.inf, math.inf))[0]
    drawings = []
    for column, units in _UNITS.items():
        most = max((float(part[column].max()) for part in means.values()), default=0.0)
        unit, size = next(((unit, size) for unit, size in units.items() if most >= size), (list(units)[-1], 1.0))
        traces = [
            Trace(line.name, line.slot, (part[column] / size).tolist(), part["score"].tolist(), line.dashes)
            for line, part in means.items()
        ]
        ends = (f"{t.label} {_last(comparison.metric, t.y)} after {t.x[-1]:.3g} {unit}" for t in traces if len(t.x))
        words = f"{comparison.metric} by {column}: {', '.join(ends)}"
        drawing = paths(f"cost-{column}", traces, within=within, share=share, words=words)
        drawings.append(Drawing(f"by {unit} of {_COSTS[column]}", drawing))
    return drawings


_COSTS = {"bytes": "training traffic, both ways, all clients together", "seconds": "work, tests left out"}
_UNITS: Mapping[str, Mapping[str, float]] = {
    "bytes": {"GB": 1e9, "MB": 1e6, "kB": 1e3, "B": 1.0},
    "seconds": {"hours": 3600.0, "minutes": 60.0, "seconds": 1.0},
}
