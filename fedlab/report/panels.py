"""Kinds of figures: panels of lines by round, paths by an amount that grows, and stacked bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from matplotlib.ticker import FuncFormatter, MaxNLocator

from fedlab.report.figures import DASHES, RULE, LegendEntry, Palette, Plot

STEPS = (1, 2, 5, 10)  # between ticks
Members = frozenset[Any]  # of a mean


@dataclass(frozen=True)
class Curve:
    """One line of a panel: a value for each round, NaN where there is none; ``band`` is (low, high) around it.

    ``members`` are what each value is a mean over. A line breaks where they change, since it would show a jump that
    nothing but the mean has made, and a value that lacks one of them has an open dot. Empty: always the same.
    """

    label: str
    slot: int
    values: Sequence[float]
    faint: bool = False
    dashes: tuple[float, ...] | None = None  # None: its color's
    band: tuple[Sequence[float], Sequence[float]] | None = None
    members: Sequence[Members] = ()

    @property
    def extent(self) -> tuple[float, ...]:
        """All that is drawn: the values, and the edges of the band."""
        return (*self.values, *(value for edge in self.band or () for value in edge))


@dataclass(frozen=True)
class Trace:
    """One line through points, from the first to the last, which has the larger dot."""

    label: str
    slot: int
    x: Sequence[float]
    y: Sequence[float]
    dashes: tuple[float, ...] = ()
    members: Sequence[Members] = ()  # as of a curve


def parts(values: Sequence[float], members: Sequence[Members]) -> list[slice]:
    """Return the stretches of a line within which its values are means over the same members.

    Examples
    --------
    >>> both, one = frozenset("ab"), frozenset("a")
    >>> parts([0.1, 0.2, 0.5], [both, both, one])
    [slice(0, 2, None), slice(2, 3, None)]
    """
    begins, last = [0], None
    for at, value in enumerate(values):
        if members and math.isfinite(value):
            if last is not None and members[at] != last:
                begins.append(at)
            last = members[at]
    return [slice(*pair) for pair in pairwise([*begins, len(values)])]


def lacking(values: Sequence[float], members: Sequence[Members]) -> Members:
    """Return the members that a line has somewhere, and that one of its values lacks."""
    known = [of for of, value in zip(members, values, strict=False) if math.isfinite(value)]
    return frozenset.union(*known) - frozenset.intersection(*known) if known else frozenset()


def limits(panels: Sequence[Sequence[Curve]], bounds: tuple[float, float]) -> list[tuple[float, float]]:
    """Return each panel's own range of values, of one common span: an inch is the same difference in all of them."""
    ranges = []
    for curves in panels:
        values = [value for curve in curves for value in curve.extent if math.isfinite(value)]
        ranges.append((min(values), max(values)) if values else (0.0, 0.0))
    widest = max(high - low for low, high in ranges)
    scale = max(abs(end) for pair in ranges for end in pair)
    span = 1.2 * widest or 0.1 * scale or 1.0
    middles = [(low + high) / 2 for low, high in ranges]
    return [_inside(middle - span / 2, middle + span / 2, bounds) for middle in middles]


def _inside(low: float, high: float, bounds: tuple[float, float]) -> tuple[float, float]:
    """Shift a range into bounds rather than cut it; a margin stays for lines that run along a bound."""
    margin = 0.04 * (high - low)
    low, high = (low, high) if high <= bounds[1] + margin else (low - (high - bounds[1] - margin), bounds[1] + margin)
    return (low, high) if low >= bounds[0] - margin else (bounds[0] - margin, high + (bounds[0] - margin - low))


def panel(
    name: str,
    rounds: Sequence[int],
    curves: Sequence[Curve],
    *,
    within: tuple[float, float],
    percent: bool,
    alt: str,
    y: str = "",
    unit: str = "",
) -> Plot:
    """Return a figure of values by round; a line goes on over rounds in which nothing was measured.

    Parameters
    ----------
    name, alt
        As of :class:`Plot`.
    within
        Range of the axis of values, which is written in percent where ``percent`` is set.
    y, unit
        Title of that axis.
    """
    measured = [at for at in range(len(rounds)) if any(math.isfinite(curve.values[at]) for curve in curves)]
    many = len(measured) > 20

    def paint(axes: Any, palette: Palette) -> None:
        places = [rounds[at] for at in measured]
        for curve in curves:
            color, values = palette(curve.slot), [curve.values[at] for at in measured]
            members = [curve.members[at] for at in measured] if curve.members else ()
            if curve.band:
                missing = _open(members)  # where the range, too, is one of other means
                low, high = (
                    [math.nan if place in missing else edge[at] for place, at in enumerate(measured)]
                    for edge in curve.band
                )
                axes.fill_between(places, low, high, color=color, alpha=0.16, linewidth=0, clip_on=False)
            pattern = _pattern(curve)
            line = {"linestyle": (0, pattern) if pattern else "-", "linewidth": 1.0 if curve.faint else 1.8}
            # A dot of the line's width shows a value between two gaps, and a larger one each round of a short run.
            size = 2.0 if curve.faint else 1.8 if many else 4.5
            _line(axes, places, values, members, size, color=color, clip_on=False, **line)
        _values_axis(axes, within, percent)
        _rounds_axis(axes, palette, rounds, 0.02 * (rounds[-1] - rounds[0]) or 0.5)

    legend = tuple(LegendEntry(curve.label, curve.slot, _pattern(curve)) for curve in curves if not curve.faint)
    return Plot(name, alt, paint, legend, x="round", y=y, unit=unit)


def _open(members: Sequence[Members]) -> set[int]:
    """Return the places of the means that lack a member which any of them has, even if none has all."""
    every = frozenset[Any]().union(*members)
    return {at for at, of in enumerate(members) if of != every}


def _line(
    axes: Any, x: Sequence[float], y: Sequence[float], members: Sequence[Members], size: float, **pen: Any
) -> None:
    """Draw a line in its parts, with open dots where a value lacks members that others have."""
    open_ = _open(members)
    for part in parts(y, members):
        full = [at - part.start for at in range(part.start, part.stop) if at not in open_] if open_ else None
        axes.plot(x[part], y[part], marker="o", markersize=size, markeredgewidth=0, markevery=full, **pen)
        if few := [at - part.start for at in range(part.start, part.stop) if at in open_]:
            ring = {**pen, "linestyle": "none", "markerfacecolor": "none", "markeredgewidth": 1.2}
            axes.plot(x[part], y[part], marker="o", markersize=max(size, 4.5), markevery=few, **ring)


def _pattern(curve: Curve) -> tuple[float, ...]:
    if curve.faint:
        return ()
    return DASHES.get(curve.slot, ()) if curve.dashes is None else curve.dashes


def paths(
    name: str,
    traces: Sequence[Trace],
    *,
    within: tuple[float, float],
    percent: bool,
    alt: str,
    x: str = "",
    y: str = "",
) -> Plot:
    """Return a figure of values by an amount that grows, the last point of a line larger; arguments as of `panel`."""

    def paint(axes: Any, palette: Palette) -> None:
        for trace in traces:
            pen: dict[str, Any] = {"color": palette(trace.slot), "clip_on": False}
            line = (0, trace.dashes) if trace.dashes else "-"
            _line(axes, trace.x, trace.y, trace.members, 3.0, linestyle=line, linewidth=1.8, **pen)
            lacks = len(trace.x) - 1 in _open(trace.members)
            dot = {"markerfacecolor": "none", "markeredgewidth": 1.6} if lacks else {"markeredgewidth": 0}
            axes.plot(trace.x[-1:], trace.y[-1:], marker="o", markersize=7.0, **dot, **pen)
        most = max((at for trace in traces for at in trace.x if math.isfinite(at)), default=0.0) or 1.0
        axes.set_xlim(-0.02 * most, 1.04 * most)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=STEPS))
        _values_axis(axes, within, percent)
        _plain_axes(axes, palette)

    legend = tuple(LegendEntry(trace.label, trace.slot, trace.dashes) for trace in traces)
    return Plot(name, alt, paint, legend, x=x, y=y)


def bars(name: str, rounds: Sequence[int], stacks: Sequence[Curve], *, alt: str, y: str = "") -> Plot:
    """Return a figure of amounts by round, one on top of the other; arguments as of `panel`."""

    def paint(axes: Any, palette: Palette) -> None:
        bottom = [0.0] * len(rounds)
        for stack in stacks:
            amounts = [value if math.isfinite(value) else 0.0 for value in stack.values]
            axes.bar(rounds, amounts, width=0.62, bottom=bottom, color=palette(stack.slot), linewidth=0, clip_on=False)
            bottom = [below + amount for below, amount in zip(bottom, amounts, strict=True)]
        axes.set_ylim(0, 1.08 * max(bottom) or 1.0)
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=STEPS))
        _rounds_axis(axes, palette, rounds, 0.6)

    legend = tuple(LegendEntry(stack.label, stack.slot, bar=True) for stack in stacks)
    return Plot(name, alt, paint, legend, x="round", y=y)


def _values_axis(axes: Any, within: tuple[float, float], percent: bool) -> None:
    axes.set_ylim(*within)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=STEPS))
    if percent:
        digits = 0 if within[1] - within[0] > 0.04 else 1 if within[1] - within[0] > 0.004 else 2
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.{digits}f} %"))


def _rounds_axis(axes: Any, palette: Palette, rounds: Sequence[int], margin: float) -> None:
    axes.set_xlim(min(rounds) - margin, max(rounds) + margin)
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True, min_n_ticks=1))
    _plain_axes(axes, palette)


def _plain_axes(axes: Any, palette: Palette) -> None:
    axes.tick_params(left=False, bottom=False, pad=4)
    axes.grid(axis="y", color=palette(RULE), linewidth=0.8, clip_on=False)
    axes.spines["bottom"].set_color(palette(RULE))
