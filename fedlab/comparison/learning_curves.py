"""Figures of a comparison: every variant's metric by round, with bands over seeds, and by its cost; and its ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fedlab.comparison import page_tables
from fedlab.comparison.page_tables import SeriesStyle
from fedlab.report.charts import Drawing, Key
from fedlab.report.panels import Curve, Members, Trace, lacking, limits, panel, paths
from fedlab.report.rank_diagram import rank_diagram
from fedlab.runs.client_distribution import WORST, distribution
from fedlab.runs.formatting import p_value

if TYPE_CHECKING:
    import pandas as pd

    from fedlab.comparison.result import Comparison

MEAN = "mean over clients"
BOUNDS = (0.0, 1.0)  # of a share
LINES = 200  # in all panels together, or a page of many variants grows to megabytes


def legend(styles: Sequence[SeriesStyle]) -> list[Key]:
    """Return a legend entry for each variant."""
    return [Key(style.name, style.slot, " ".join(f"{part:g}" for part in style.dashes) or "none") for style in styles]


def drawn_clients(comparison: Comparison, styles: Sequence[SeriesStyle]) -> list[str]:
    """Return the clients with a panel of their own: of many clients, none."""
    if comparison.has_many_clients:
        return []
    return comparison.clients[: max(1, LINES // max(len(styles), 1))]


def hidden_clients(comparison: Comparison, styles: Sequence[SeriesStyle]) -> int:
    """Return the number of clients that have no panel because there is no room; not of many clients."""
    return 0 if comparison.has_many_clients else len(comparison.clients) - len(drawn_clients(comparison, styles))


def curve_figures(comparison: Comparison, styles: Sequence[SeriesStyle]) -> list[Drawing]:
    """Return the metric by round: the mean over clients, then client by client, with bands of the range over seeds.

    A point is the mean over all seeds, of which one that has ended counts with its end, or there is none.
    Of many clients, the median and the worst tenth stand in place of single clients.
    """
    frame, rounds = comparison.frame, _rounds(comparison)
    parts = {MEAN: comparison.curves} if len(comparison.clients) > 1 else {}
    if comparison.has_many_clients:
        parts |= _distribution_parts(comparison)
    parts |= {client: frame[frame["client"] == client] for client in drawn_clients(comparison, styles)}
    panels = {title: [_curve(part, comparison, style, rounds) for style in styles] for title, part in parts.items()}
    if MEAN in panels:
        panels[MEAN] = [
            replace(curve, members=_members(comparison, style, rounds))
            for curve, style in zip(panels[MEAN], styles, strict=True)
        ]
    table, metric = comparison.metric_table, comparison.metric
    percent = table.is_fraction(metric)
    ranges = limits(list(panels.values()), BOUNDS if percent else (-math.inf, math.inf))
    drawings = []
    for i, ((title, curves), within) in enumerate(zip(panels.items(), ranges, strict=True)):
        ends = (f"{c.label} {_last(comparison, c.values)}" for c in curves)
        alt = f"{table.title(metric)} by round, {title}; at the end {', '.join(ends)}"
        plot = panel(f"curve-{i}", rounds, curves, within=within, percent=percent, alt=alt, y=axis_title(comparison))
        drawings.append(Drawing(title, plot))
    return drawings


def axis_title(comparison: Comparison) -> str:
    """Return the compared metric with its unit; ticks say percent."""
    metric = comparison.metric_table.find(comparison.metric)
    percent = comparison.metric_table.is_fraction(comparison.metric)
    return f"{metric.title} in {metric.unit}" if metric.unit and not percent else metric.title


def _distribution_parts(comparison: Comparison) -> dict[str, pd.DataFrame]:
    """Return the median client's scores and those of the worst tenth by title, a row a cell and round."""
    import pandas as pd

    direction, columns = comparison.metric_table.direction(comparison.metric), [*comparison.keys, "seed", "round"]
    tested = comparison.frame.dropna(subset=["score"]).groupby(columns, sort=False)["score"]
    found = {key: distribution(scores, direction) for key, scores in tested}
    places = pd.DataFrame(list(found), columns=columns)
    titles = {"median": "median client", **({WORST: "worst tenth of clients"} if direction else {})}
    return {title: places.assign(score=[of[row] for of in found.values()]) for row, title in titles.items()}


def _curve(part: pd.DataFrame, comparison: Comparison, style: SeriesStyle, rounds: Sequence[int]) -> Curve:
    own, ends = _own(part, comparison.keys, style), _ends(comparison, style)
    scores = _by_seed(own, "score", ends).dropna().reindex(list(rounds))
    band = (scores.min(axis=1).tolist(), scores.max(axis=1).tolist()) if scores.shape[1] > 1 else None
    return Curve(style.name, style.slot, scores.mean(axis=1).tolist(), dashes=style.dashes, band=band)


def _ends(comparison: Comparison, style: SeriesStyle) -> dict[int, int]:
    """Return the last round of a variant's runs by seed; budgets and early stopping end them at different ones."""
    found: dict[int, int] = {}
    curves = _own(comparison.curves, comparison.keys, style)
    for seed, number in zip(curves["seed"].tolist(), curves["round"].tolist(), strict=True):
        found[seed] = max(number, found.get(seed, 0))
    return found


def _by_seed(own: pd.DataFrame, column: str, ends: Mapping[int, int]) -> pd.DataFrame:
    """Return a column as (rounds, seeds): a run that has ended stays what it was at its end, or is not there.

    Without that, the last points of a mean would be those of the seeds that went on. Seeds without a score are left
    out.
    """
    import pandas as pd

    table = own.dropna(subset=["score"]).groupby(["round", "seed"])[column].mean().unstack("seed")
    rounds, lines = table.index.tolist(), {}
    for seed in table.columns.tolist():
        values, end = table[seed].tolist(), ends[int(seed)]
        last = values[rounds.index(end)] if end in rounds else math.nan
        lines[seed] = [value if number <= end else last for number, value in zip(rounds, values, strict=True)]
    return pd.DataFrame(lines, index=table.index)


def _members(comparison: Comparison, style: SeriesStyle, rounds: Sequence[int]) -> list[Members]:
    """Return the clients that a variant's means are over, each with its seed, in each round.

    None are returned of many clients, and where tests are of samples. A run that has ended has those of its end.
    """
    if comparison.has_many_clients or not all(result.tests_everybody for _, result in comparison.results):
        return []
    scored = _own(comparison.frame, comparison.keys, style).dropna(subset=["score"])
    at: dict[tuple[int, int], set[tuple[str, int]]] = {}
    for number, seed, client in scored[["round", "seed", "client"]].itertuples(index=False, name=None):
        at.setdefault((int(number), int(seed)), set()).add((str(client), int(seed)))
    ends = _ends(comparison, style)
    return [
        frozenset().union(*(at.get((min(number, end), seed), set()) for seed, end in ends.items())) for number in rounds
    ]


def sometimes_missing(comparison: Comparison, styles: Sequence[SeriesStyle]) -> list[str]:
    """Return the clients that some of the drawn means lack."""
    if len(comparison.clients) < 2:
        return []
    rounds = _rounds(comparison)
    found: set[tuple[str, int]] = set()
    for style in styles:
        values = _curve(comparison.curves, comparison, style, rounds).values
        found |= lacking(values, _members(comparison, style, rounds))
    return [client for client in comparison.clients if client in {name for name, _ in found}]


def _rounds(comparison: Comparison) -> list[int]:
    return sorted(int(number) for number in comparison.frame["round"].unique())


def _own(part: pd.DataFrame, keys: Sequence[str], style: SeriesStyle) -> pd.DataFrame:
    for name, value in zip(keys, style.key, strict=True):
        part = part[part[name].astype(str) == value]
    return part


def _last(comparison: Comparison, values: Sequence[float]) -> str:
    known = [value for value in values if math.isfinite(value)]
    return comparison.metric_table.format(comparison.metric, known[-1]) if known else "nothing"


def cost_figures(comparison: Comparison, styles: Sequence[SeriesStyle]) -> list[Drawing]:
    """Return the mean over clients by its cost so far: bytes of training, and seconds without tests."""
    curves = comparison.curves
    means = {style: _means(_own(curves, comparison.keys, style), _ends(comparison, style)) for style in styles}
    table, metric = comparison.metric_table, comparison.metric
    percent = table.is_fraction(metric)
    scores = [Curve(style.name, style.slot, part["score"].tolist()) for style, part in means.items()]
    within = limits([scores], BOUNDS if percent else (-math.inf, math.inf))[0]
    drawings = []
    for column, units in _UNITS.items():
        most = max((float(part[column].max()) for part in means.values()), default=0.0)
        unit, size = next(((unit, size) for unit, size in units.items() if most >= size), (list(units)[-1], 1.0))
        traces = [
            Trace(
                style.name,
                style.slot,
                (part[column] / size).tolist(),
                part["score"].tolist(),
                style.dashes,
                _members(comparison, style, part.index.tolist()),
            )
            for style, part in means.items()
        ]
        ends = (f"{t.label} {_last(comparison, t.y)} after {t.x[-1]:.3g} {unit}" for t in traces if len(t.x))
        alt = f"{table.title(metric)} by {column}: {', '.join(ends)}"
        x, y = f"{unit} of {_SHORT[column]}", axis_title(comparison)
        drawing = paths(f"cost-{column}", traces, within=within, percent=percent, alt=alt, x=x, y=y)
        drawings.append(Drawing(f"by {unit} of {_COSTS[column]}", drawing))
    return drawings


def _means(own: pd.DataFrame, ends: Mapping[int, int]) -> pd.DataFrame:
    """Return score, bytes and seconds by round, each the mean over all seeds."""
    import pandas as pd

    columns = {name: _by_seed(own, name, ends).mean(axis=1, skipna=False) for name in ("score", "bytes", "seconds")}
    return pd.DataFrame(columns).dropna()


def named_figures(comparison: Comparison) -> list[tuple[str, Drawing]]:
    """Return the figures of a comparison, each with a name that says what it shows."""
    styles = page_tables.variants(comparison, comparison.summary())
    if not styles:
        return []
    measure, ranks = comparison.metric_table.title(comparison.metric), rank_figure(comparison, styles)
    drawn = (*curve_figures(comparison, styles), *cost_figures(comparison, styles))
    return [
        *((f"{measure} {drawing.title.partition(',')[0]}", drawing) for drawing in drawn),
        *([(ranks.drawing.title, ranks.drawing)] if ranks else []),
    ]


def rank_figure(comparison: Comparison, styles: Sequence[SeriesStyle]) -> RankFigure | None:
    """Return the critical-difference diagram of the variants over clients, where there are enough of both."""
    found = comparison.ranking()
    if found is None:
        return None
    keys, ranking = found
    shown = [next(style for style in styles if style.key == key) for key in keys]
    names = [style.name for style in shown]
    ranks = ", ".join(f"{name} {rank:.2f}" for name, rank in zip(names, ranking.ranks, strict=True))
    alt = f"Mean ranks over {ranking.n} clients: {ranks}; critical difference {ranking.width:.2f}"
    plot = rank_diagram(names, ranking.ranks, ranking.groups(), ranking.width, [style.slot for style in shown], alt)
    return RankFigure(Drawing("critical difference", plot), ranking.n, p_value(ranking.p))


@dataclass(frozen=True)
class RankFigure:
    """The critical-difference diagram, over how many clients, and the p-value of Friedman's test."""

    drawing: Drawing
    clients: int
    p: str


_COSTS = {"bytes": "training traffic, both ways, all clients together", "seconds": "work, tests left out"}
_SHORT = {"bytes": "training traffic", "seconds": "work"}
_UNITS: Mapping[str, Mapping[str, float]] = {
    "bytes": {"GB": 1e9, "MB": 1e6, "kB": 1e3, "B": 1.0},
    "seconds": {"hours": 3600.0, "minutes": 60.0, "seconds": 1.0},
}
