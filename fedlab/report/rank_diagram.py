"""The critical-difference diagram: mean ranks on a line, and a bar over those that the data does not tell apart.

**Source**: Demsar, Statistical Comparisons of Classifiers over Multiple Data Sets, JMLR 2006, figure 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedlab.report.figures import INK, RULE, Palette, Plot

WIDTH, ROW, TOP, BAR = 460.0, 17.0, 62.0, 7.0  # in points: of all, of a name, above the first bar, of a bar
LETTER, MOST = 6.3, 170.0  # width of a letter, and of the longest name that is shown whole


def rank_diagram(
    names: Sequence[str],
    ranks: Sequence[float],
    groups: Sequence[Sequence[int]],
    width: float,
    slots: Sequence[int],
    alt: str,
) -> Plot:
    """Return the diagram of strategies; the best one is on the left.

    Parameters
    ----------
    names, ranks, slots
        Of each strategy: its name, its mean rank and its color.
    groups
        Strategies, by index, that the data does not tell apart.
    width
        The critical difference, which a ruler shows.
    alt
        The diagram in words.
    """
    order = sorted(range(len(names)), key=lambda index: ranks[index])
    left = order[: (len(order) + 1) // 2]
    right = order[len(left) :][::-1]
    side = min(MOST, LETTER * max(map(len, names)) + 14)
    below = TOP + BAR * len(groups) + 10
    height = below + ROW * len(left)

    def x(rank: float) -> float:
        return side + (rank - 1) / (len(names) - 1) * (WIDTH - 2 * side)

    def paint(axes: Any, palette: Palette) -> None:
        axes.set_xlim(0, WIDTH)
        axes.set_ylim(height, 0)
        axes.set_axis_off()
        pen = {"color": palette(RULE), "linewidth": 1.2, "solid_capstyle": "butt"}
        axes.plot([x(1), x(len(names))], [TOP - 14] * 2, **pen)
        for rank in range(1, len(names) + 1):
            axes.plot([x(rank)] * 2, [TOP - 14, TOP - 19], **pen)
            axes.text(x(rank), TOP - 22, str(rank), ha="center", va="bottom")
        axes.text(WIDTH, 0, "mean rank, 1 is best", ha="right", va="top")
        end = min(x(1) + width / (len(names) - 1) * (WIDTH - 2 * side), WIDTH)
        axes.plot([x(1), x(1), x(1), end, end, end], [15, 21, 18, 18, 15, 21], color=palette(1), linewidth=1.2)
        axes.text(x(1), 0, f"critical difference {width:.2f}", ha="left", va="top")
        for number, group in enumerate(groups):
            ends = [x(min(ranks[i] for i in group)) - 3, x(max(ranks[i] for i in group)) + 3]
            axes.plot(ends, [TOP - 4 + BAR * number] * 2, color=palette(1), linewidth=3.2, solid_capstyle="butt")
        for strategies, edge, align in ((left, side - 6, "right"), (right, WIDTH - side + 6, "left")):
            for row, index in enumerate(strategies):
                y = below + ROW * (row + 0.5)
                color = palette(slots[index])
                axes.plot([x(ranks[index]), x(ranks[index]), edge], [TOP - 14, y, y], color=color, linewidth=1.2)
                axes.plot([x(ranks[index])], [TOP - 14], marker="o", markersize=5, markeredgewidth=0, color=color)
                away = -3 if align == "right" else 3
                axes.text(edge + away, y, names[index], ha=align, va="center", parse_math=False, color=INK)

    return Plot("ranks", alt, paint, size=(WIDTH, height), margins=(0.0, 0.0, 0.0, 0.0))
