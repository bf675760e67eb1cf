"""Small figures of a report, drawn by matplotlib: inline SVG for a page, or a PDF for a paper; and their colors.

On a page a figure's colors are CSS variables (``--c0`` for hairlines, ``--c1`` to ``--c8``) and its text is real text
in the page's own letters, so that one drawing serves light, dark and print. Equal input gives equal bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fedlab.runs.metrics import MetricTable

SLOTS = 8  # colors of the page, numbered from 1
REFERENCE = 1  # the gray one: what others are compared with
# A dash pattern beside each color, in pixels, for eyes and printers that see no color.
DASHES: Mapping[int, tuple[float, ...]] = {1: (4, 2.5), 3: (1.4, 1.8), 5: (6, 2, 1.4, 2), 6: (2.5, 1.5), 8: (8, 2)}

WIDTH, HEIGHT = 300.0, 200.0  # of a figure's own coordinates; the page scales it to its column
MARGINS = (45.0, 36.0, 3.0, 18.0)  # left, below, right, above; for ticks and titles of the axes
LEGEND_ROW = 13.0  # height of a row of a legend, in a PDF
PIXELS_PER_INCH = 72.0  # of matplotlib's SVG
RULE = 0  # slot of hairlines
# A PDF has no page around it that colors it: the page's light colors by slot, and that of its text.
PAPER = ("#d9dcda", "#858d94", "#2f6db3", "#c46a1b", "#12806a", "#8257a8", "#b8456b", "#7c7a1f", "#3b95b8")
INK = "#20262c"

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "pdf.fonttype": 42,  # letters of a PDF that can be searched and edited
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
NAME = "\ue000"  # stands for the figure's name until the end; no text of a figure holds this character
# From matplotlib's SVG to ours.
_CLEANING = (
    (r'<g id="[^"]*">', "<g>"),
    (r' id="(\w+)"', rf' id="{NAME}\1"'),
    (r' xlink:href="#(\w+)"', rf' href="#{NAME}\1"'),
    (r' transform="rotate\(-0 [^"]*"', ""),
    (r"font-family: [^;\"]*;? ?", ""),
    (r"stroke-dashoffset: 0; ?", ""),
    (r"#0101([0-9a-f]{2})", lambda match: f"var(--c{int(match[1], 16)})"),
    (r"\s*\n\s*", " "),
)


@dataclass(frozen=True)
class LegendEntry:
    """One series of a figure that stands alone: its name, color and dash pattern; ``bar`` for an area."""

    label: str
    slot: int
    dashes: tuple[float, ...] = ()
    bar: bool = False


Palette = Callable[[int], str]  # a slot's color


@dataclass(frozen=True)
class Plot:
    """A figure that is drawn when it is asked for.

    Attributes
    ----------
    name
        The figure's own in its page.
    alt
        What it shows in words, for those who cannot see it.
    paint
        Draws into matplotlib's axes with the colors of a palette.
    legend
        Its series. On a page several figures share one legend, so only a PDF has them.
    size, margins
        In points; margins are those left of, below, right of and above the axes.
    x, y, unit
        Titles of the axes; the unit is that of the values.
    """

    name: str
    alt: str
    paint: Callable[[Any, Palette], None]
    legend: tuple[LegendEntry, ...] = ()
    size: tuple[float, float] = (WIDTH, HEIGHT)
    margins: tuple[float, float, float, float] = MARGINS
    x: str = ""
    y: str = ""
    unit: str = ""

    @property
    def svg(self) -> Markup:
        """The figure as an element of a page: without size, colors and letters of its own."""
        return self.under("")

    def under(self, title: str) -> Markup:
        """Return the same for a place under a title; titles of axes that are part of it are not written again."""
        x, y = ("" if _says(title, words) else words for words in (self.x, self.y))
        with rc_context({**_STYLE, "svg.hashsalt": "fedlab"}), io.StringIO() as stream:
            figure = self._figure(lambda slot: f"#0101{slot:02x}", 0.0, x, y)
            figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
            drawing = stream.getvalue()
        body = drawing[drawing.index("</defs>") + len("</defs>") : drawing.rindex("</svg>")]
        for pattern, replacement in _CLEANING:
            body = re.sub(pattern, replacement, body)
        body = body.replace(NAME, f"{self.name}-")
        width, height = self.size
        return Markup(
            f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(self.alt)}">{body}</svg>'
        )

    def pdf(self) -> bytes:
        """Return the figure as a PDF that stands alone, with a legend where it has several series."""
        entries = self.legend if len(self.legend) > 1 else ()
        columns = max(1, int(self.size[0] // (40 + 6 * max((len(entry.label) for entry in entries), default=1))))
        rows = -(-len(entries) // columns)
        colors: dict[Any, Any] = {
            "text.color": INK,
            "axes.labelcolor": INK,
            "xtick.labelcolor": INK,
            "ytick.labelcolor": INK,
        }
        with rc_context({**_STYLE, **colors}), io.BytesIO() as stream:
            figure = self._figure(PAPER.__getitem__, LEGEND_ROW * rows, self.x, self.y)
            if entries:
                handles = list(map(_legend_handle, entries))
                legend = figure.legend(
                    handles=handles, loc="lower center", ncols=columns, frameon=False, fontsize=9, borderpad=0
                )
                for text in legend.get_texts():
                    text.set_parse_math(False)
            figure.savefig(stream, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
            return stream.getvalue()

    def _figure(self, palette: Palette, below: float, x: str, y: str) -> Figure:
        """Draw on a figure of its own, without pyplot, whose state a notebook may be using.

        The title of the values lies above their axis, where a reader need not turn the head. A name may hold a dollar
        sign, which is no formula.
        """
        (width, height), (left, bottom, right, top) = self.size, self.margins
        whole = height + below
        figure = Figure(figsize=(width / PIXELS_PER_INCH, whole / PIXELS_PER_INCH))
        box = (left / width, (bottom + below) / whole, (width - left - right) / width, (height - bottom - top) / whole)
        axes = figure.add_axes(box)
        self.paint(axes, palette)
        if x:
            axes.set_xlabel(x, labelpad=3, parse_math=False)
        if values := " in ".join(filter(None, (y, self.unit))):
            figure.text(0.0, 1.0, values, ha="left", va="top", parse_math=False)
        return figure


def _says(title: str, words: str) -> bool:
    """Return True if some words are part of a title, whatever their case."""
    return bool(words and re.search(rf"(?<!\w){re.escape(words)}(?!\w)", title, re.IGNORECASE))


def _legend_handle(entry: LegendEntry) -> Line2D:
    pattern: Any = (0, entry.dashes) if entry.dashes and not entry.bar else "-"
    width = 6.0 if entry.bar else 1.8
    return Line2D([], [], color=PAPER[entry.slot], linestyle=pattern, linewidth=width, label=entry.label)


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
