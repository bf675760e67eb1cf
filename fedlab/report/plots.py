"""Pictures that are no curves, as inline SVG: clouds of points, histograms, intervals on one scale, shares of a bar.

They are written by hand and not by matplotlib, because they are many: a cloud of 300 points is one path of 3 kB here
and a drawing of 25 kB there. As in :mod:`fedlab.report.figures`, colors are variables of the page and text is text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from fedlab.report.figures import SLOTS

Array = NDArray[Any]

WIDTH, HEIGHT, MARGIN = 600, 440, 14  # of a cloud, in its own units
SOURCE, TARGET = 1, 2  # colors
LETTERS = 130  # of a domain in a map: more cover each other
GLYPHS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # a class each


def svg(width: float, height: float, body: str, alt: str, kind: str = "") -> Markup:
    """Return a drawing for a page; ``alt`` describes it in words, and ``body`` is SVG."""
    kind = f' class="{kind}"' if kind else ""
    return Markup(f'<svg{kind} viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(alt)}">{body}</svg>')


def bounds(*clouds: Array) -> tuple[Array, Array]:
    """Return lowest and highest corner (2,) around clouds (points, 2); one outlier in a hundred may lie outside."""
    points = np.concatenate([cloud.reshape(-1, 2) for cloud in clouds])
    if not len(points):
        return np.zeros(2), np.ones(2)
    low, high = np.quantile(points, 0.003, axis=0), np.quantile(points, 0.997, axis=0)
    return low, np.where(high > low, high, low + 1.0)


def _placed(points: Array, within: tuple[Array, Array]) -> Array:
    """Return points in whole units of the drawing, (points, 2), the second axis upwards."""
    share = ((points - within[0]) / (within[1] - within[0])).clip(0, 1)
    x = MARGIN + share[:, 0] * (WIDTH - 2 * MARGIN)
    y = HEIGHT - MARGIN - share[:, 1] * (HEIGHT - 2 * MARGIN)
    placed: Array = np.stack([x, y], 1).round().astype(int)
    return placed


def _frame() -> str:
    return (
        f'<rect x="1" y="1" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="8" '
        'style="fill:none;stroke:var(--c0);stroke-width:2"/>'
    )


def domains(source: Array, target: Array, within: tuple[Array, Array], alt: str) -> Markup:
    """Draw the source as gray discs and the target as colored squares, points (points, 2) each."""
    layers = []
    for cloud, slot, size, cap in ((source, SOURCE, 9, "round"), (target, TARGET, 8, "square")):
        dots = "".join(f"M{x} {y}h.1" for x, y in _placed(cloud, within))  # a line of no length is lost in print
        pen = f"stroke:var(--c{slot});stroke-width:{size};stroke-linecap:{cap};stroke-opacity:.62"
        layers.append(f'<path d="{dots}" style="fill:none;{pen}"/>' if len(cloud) else "")
    return svg(WIDTH, HEIGHT, _frame() + "".join(layers), alt)


def classes(clouds: Sequence[tuple[Array, Array, int]], within: tuple[Array, Array], alt: str) -> Markup:
    """Draw each point as its class's digit or letter: clouds of points (points, 2), classes (points,) and a color."""
    layers = []
    for points, labels, slot in clouds:
        some = np.linspace(0, len(points) - 1, min(LETTERS, len(points))).astype(int)
        placed, labels = _placed(points[some], within), labels[some]
        x, y = (" ".join(map(str, placed[:, axis] + shift)) for axis, shift in ((0, -6), (1, 8)))
        text = "".join(GLYPHS[int(label)] for label in labels)
        layers.append(f'<text x="{x}" y="{y}" class="glyphs" style="fill:var(--c{slot})">{text}</text>')
    return svg(WIDTH, HEIGHT, _frame() + "".join(layers), alt)


def has_glyphs(*labels: Array) -> bool:
    """Return True if every point has a class that can be drawn."""
    return all(label.ndim == 1 and len(label) and label.min() >= 0 and label.max() < len(GLYPHS) for label in labels)


def histogram(source: Array, target: Array, alt: str) -> Markup:
    """Draw counts (bins,) over [0, 1] as fractions: of the source as bars, of the target as a line of steps."""
    bins, left, bottom = len(source), 14.0, 262.0
    width = (WIDTH - 2 * left) / bins
    shares = [counts / max(counts.sum(), 1) for counts in (source, target)]
    scale = 230.0 / max(float(np.max(shares)), 1e-9)
    bars = "".join(
        f"M{left + i * width + 1:.1f} {bottom:g}v{-share * scale:.1f}h{width - 2:.1f}v{share * scale:.1f}z"
        for i, share in enumerate(shares[0])
    )
    steps = f"M{left:g} {bottom:g}" + "".join(f"V{bottom - share * scale:.1f}h{width:.1f}" for share in shares[1])
    body = (
        f'<path d="{bars}" style="fill:var(--c{SOURCE});fill-opacity:.55"/>'
        f'<path d="{steps}V{bottom:g}" style="fill:none;stroke:var(--c{TARGET});stroke-width:4"/>'
        f'<path d="M{left:g} {bottom:g}H{WIDTH - left:g}" style="stroke:var(--soft);stroke-width:1.5"/>'
        f'<text x="{left:g}" y="290" class="large">0</text>'
        f'<text x="{WIDTH - left:g}" y="290" class="large" text-anchor="end">1</text>'
    )
    return svg(WIDTH, 300, body, alt)


def axis_range(ends: Sequence[float]) -> tuple[float, float]:
    """Return a scale for intervals: all finite ends and zero, with a margin."""
    known = [0.0, *(end for end in ends if math.isfinite(end))]
    room = 0.06 * (max(known) - min(known)) or 1.0
    return min(known) - room, max(known) + room


def forest_plot(mean: float, low: float, high: float, scale: tuple[float, float], alt: str) -> Markup:
    """Draw a mean and its interval on a scale that a column of a table shares; the upright line is zero."""

    def at(value: float) -> float:
        return 240 * (value - scale[0]) / (scale[1] - scale[0])

    body = f'<path d="M{at(0):.1f} 0V22" style="stroke:var(--line);stroke-width:1.5"/>'
    if math.isfinite(low):
        body += f'<path d="M{at(low):.1f} 11H{at(high):.1f}" style="stroke:var(--c2);stroke-width:2.5"/>'
    if math.isfinite(mean):
        body += f'<circle cx="{at(mean):.1f}" cy="11" r="4.2" style="fill:var(--c2)"/>'
    return svg(240, 22, body, alt, "forest")


def class_slot(place: int) -> int:
    """Return the color of a class by its place in the order of all classes."""
    return place % SLOTS + 1


def label_bar(counts: Mapping[str, float], names: Mapping[str, str], alt: str) -> Markup:
    """Draw one bar cut into parts, in an order of labels that fixes the colors.

    Where there is room in a part stands its class's name, else its label, else nothing.
    """
    total, x, body = sum(counts.values()) or 1.0, 0.0, ""
    for i, (label, name) in enumerate(names.items()):
        width = 400 * counts.get(label, 0.0) / total
        if width <= 0:
            continue
        color = f"fill:var(--c{class_slot(i)})"
        body += f'<rect x="{x:.1f}" y="1" width="{width:.1f}" height="20" class="part" style="{color}"/>'
        text = next((text for text in (name, label) if width > 8 * len(text) + 3), "")
        if text:
            body += f'<text x="{x + width / 2:.1f}" y="15.5" text-anchor="middle">{escape(text)}</text>'
        x += width
    return svg(400, 22, body, alt, "shares")


def size_bar(value: float, most: float, alt: str) -> Markup:
    """Draw a plain bar, whose length is the value's fraction of the largest."""
    width = 100 * value / most if most else 0.0
    body = f'<rect x="0" y="5" width="{width:.1f}" height="12" style="fill:var(--c1)"/>'
    return svg(100, 22, body, alt, "amount")
