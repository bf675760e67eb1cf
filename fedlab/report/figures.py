"""Small figures of a report as inline SVG: drawn by matplotlib, colored and lettered by the page around them.

A figure's colors are CSS variables of the page (``--c0`` for hairlines, ``--c1`` to ``--c8``) and its text is real
text in the page's own letters, so that one drawing serves light, dark and print. Equal input gives equal bytes.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fedlab.runs.metrics import MetricTable

SLOTS = 8  # colors of the page, numbered from 1
REFERENCE = 1  # the gray one: what others are compared with
# A dash pattern beside each color, in pixels, for eyes and printers that see no color.
DASHES: Mapping[int, tuple[float, ...]] = {1: (4, 2.5), 3: (1.4, 1.8), 5: (6, 2, 1.4, 2), 6: (2.5, 1.5), 8: (8, 2)}

WIDTH, HEIGHT = 300.0, 180.0  # of a figure's own coordinates; the page scales it to its column
PIXELS_PER_INCH = 72.0  # of matplotlib's SVG
RULE = 0  # slot of hairlines
STEPS = (1, 2, 5, 10)  # between ticks

_STYLE = {
    "svg.fonttype": "none",
    "font.size": 10.5,
    "lines.scale_dashes": False,
    "lines.solid_capstyle": "round",
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
}
# From matplotlib's SVG to ours; an @ stands for the figure's name until the end.
_CLEANING = (
    (r'<g id="[^"]*">', "<g>"),
    (r' id="(\w+)"', r' id="@\1"'),
    (r' xlink:href="#(\w+)"', r' href="#@\1"'),
    (r' transform="rotate\(-0 [^"]*"', ""),
    (r"font-family: [^;\"]*;? ?", ""),
    (r"stroke-dashoffset: 0; ?", ""),
    (r"#0101([0-9a-f]{2})", lambda match: f"var(--c{int(match[1], 16)})"),
    (r"\s*\n\s*", " "),
)


@dataclass(frozen=True)
class Curve:
    """One line of a panel: a value for each round, NaN where there is none; ``band`` is (low, high) around it."""

    label: str
    slot: int
    values: Sequence[float]
    faint: bool = False
    dashes: tuple[float, ...] | None = None  # None: its color's
    band: tuple[Sequence[float], Sequence[float]] | None = None


@dataclass(frozen=True)
class Trace:
    """One line through points, from the first to the last, which has the larger dot."""

    label: str
    slot: int
    x: Sequence[float]
    y: Sequence[float]
    dashes: tuple[float, ...] = ()


def slots(names: Sequence[str], table: MetricTable) -> dict[str, int]:
    """Return a color for each metric; a declared variant has the same one on all pages of its strategy."""
    fixed = {name: slot for name in names if (slot := _slot_of(name, table))}
    taken = set(fixed.values())
    free = [slot for slot in range(2, SLOTS + 1) if slot not in taken] or list(range(2, SLOTS + 1))
    rest = [name for name in names if name not in fixed]
    return {**fixed, **{name: free[i % len(free)] for i, name in enumerate(rest)}}


def _slot_of(name: str, table: MetricTable) -> int:
    """Return the color of a variant: gray for a reference, by its place for others; 0 for what is no such variant."""
    if table.role(name) == "reference":
        return REFERENCE
    variants = [table.variant(name) == metric.name.removeprefix("*_") for metric in table.variants]
    return 2 + variants.index(True) if True in variants[: SLOTS - 1] else 0


def dashes(slot: int) -> str:
    """Return a color's pattern as SVG's ``stroke-dasharray``."""
    return " ".join(f"{length:g}" for length in DASHES.get(slot, ())) or "none"


def limits(panels: Sequence[Sequence[Curve]], bounds: tuple[float, float]) -> list[tuple[float, float]]:
    """Return each panel's own range of values, of one common span: an inch is the same difference in all of them."""
    ranges = []
    for curves in panels:
        values = [value for curve in curves for value in curve.values if math.isfinite(value)]
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
) -> Markup:
    """Draw values by round; a line goes on over rounds in which nothing was measured.

    Parameters
    ----------
    name
        The figure's own in its page.
    within
        Range of the axis of values, which is written in percent where ``percent`` is set.
    words
        What the figure shows, for those who cannot see it.
    """
    measured = [at for at in range(len(rounds)) if any(math.isfinite(curve.values[at]) for curve in curves)]
    with _figure() as (figure, axes):
        for curve in curves:
            # A dot of the line's width shows a value between two gaps, and a larger one each round of a short run.
            size = (4.5 if len(measured) <= 20 else 1.8) if not curve.faint else 2.0
            pattern = () if curve.faint else DASHES.get(curve.slot, ()) if curve.dashes is None else curve.dashes
            if curve.band:
                low, high = ([edge[at] for at in measured] for edge in curve.band)
                at = [rounds[place] for place in measured]
                axes.fill_between(at, low, high, color=_color(curve.slot), alpha=0.16, linewidth=0, clip_on=False)
            axes.plot(
                [rounds[at] for at in measured],
                [curve.values[at] for at in measured],
                color=_color(curve.slot),
                linestyle=(0, pattern) if pattern else "-",
                linewidth=1.0 if curve.faint else 1.8,
                marker="o",
                markersize=size,
                markeredgewidth=0,
                clip_on=False,
            )
        _values_axis(axes, within, percent)
        _rounds_axis(axes, rounds, 0.02 * (rounds[-1] - rounds[0]) or 0.5)
        return _svg(figure, name, alt)


def paths(name: str, traces: Sequence[Trace], *, within: tuple[float, float], percent: bool, alt: str) -> Markup:
    """Draw values by an amount that grows: lines, the last point of each with a larger dot; arguments as of `panel`."""
    with _figure() as (figure, axes):
        for trace in traces:
            pen = {"color": _color(trace.slot), "clip_on": False, "markeredgewidth": 0}
            line = (0, trace.dashes) if trace.dashes else "-"
            axes.plot(trace.x, trace.y, linestyle=line, linewidth=1.8, marker="o", markersize=3.0, **pen)
            axes.plot(trace.x[-1:], trace.y[-1:], marker="o", markersize=7.0, **pen)
        most = max((x for trace in traces for x in trace.x if math.isfinite(x)), default=0.0) or 1.0
        axes.set_xlim(-0.02 * most, 1.04 * most)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=STEPS))
        _values_axis(axes, within, percent)
        _plain_axes(axes)
        return _svg(figure, name, alt)


def bars(name: str, rounds: Sequence[int], stacks: Sequence[Curve], *, alt: str) -> Markup:
    """Draw amounts by round, one on top of the other."""
    with _figure() as (figure, axes):
        bottom = [0.0] * len(rounds)
        for stack in stacks:
            amounts = [value if math.isfinite(value) else 0.0 for value in stack.values]
            axes.bar(rounds, amounts, width=0.62, bottom=bottom, color=_color(stack.slot), linewidth=0, clip_on=False)
            bottom = [below + amount for below, amount in zip(bottom, amounts, strict=True)]
        axes.set_ylim(0, 1.08 * max(bottom) or 1.0)
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=STEPS))
        _rounds_axis(axes, rounds, 0.6)
        return _svg(figure, name, alt)


def _values_axis(axes: Any, within: tuple[float, float], percent: bool) -> None:
    axes.set_ylim(*within)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=STEPS))
    if percent:
        digits = 0 if within[1] - within[0] > 0.04 else 1 if within[1] - within[0] > 0.004 else 2
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.{digits}f} %"))


def _rounds_axis(axes: Any, rounds: Sequence[int], margin: float) -> None:
    axes.set_xlim(min(rounds) - margin, max(rounds) + margin)
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True, min_n_ticks=1))
    _plain_axes(axes)


def _plain_axes(axes: Any) -> None:
    axes.tick_params(left=False, bottom=False, pad=4)
    axes.grid(axis="y", color=_color(RULE), linewidth=0.8, clip_on=False)
    axes.spines["bottom"].set_color(_color(RULE))


@contextmanager
def _figure() -> Iterator[tuple[Figure, Any]]:
    """Yield an empty figure and its axes; without pyplot, whose state a notebook may be using."""
    with rc_context(_STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(WIDTH / PIXELS_PER_INCH, HEIGHT / PIXELS_PER_INCH))
        yield figure, figure.add_axes((0.15, 0.12, 0.84, 0.79))


def _color(slot: int) -> str:
    return f"#0101{slot:02x}"


def _svg(figure: Figure, name: str, alt: str) -> Markup:
    """Return the figure as an element of a page: without size, colors and letters of its own."""
    with rc_context({"svg.hashsalt": "fedlab"}), io.StringIO() as stream:
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        drawing = stream.getvalue()
    body = drawing[drawing.index("</defs>") + len("</defs>") : drawing.rindex("</svg>")]
    for pattern, replacement in _CLEANING:
        body = re.sub(pattern, replacement, body)
    body = body.replace("@", f"{name}-")
    return Markup(f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{escape(alt)}">{body}</svg>')
