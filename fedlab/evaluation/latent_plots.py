"""Figures of a latent space, as PNG bytes: paths between molecules, a property's direction, metrics by an option."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedlab.evaluation.distances import Floats
from fedlab.evaluation.molecule_plots import GENERATED, INK, NAMES, REAL, SOFT, molecule_grid, render, stack_vertically
from fedlab.evaluation.png import new_figure

WARM, GREEN = "#c46a1b", "#12806a"  # of the report's pages, as GENERATED
INVALID = "no molecule"


def interpolation_plot(ends: Sequence[tuple[str, str]], lines: Sequence[Sequence[str | None]], caption: str) -> bytes:
    """Return a grid of molecules: a row for each pair, the first, those decoded on the way, the second.

    Parameters
    ----------
    ends
        Pairs of SMILES.
    lines
        Decoded SMILES of each pair, None where a graph is no molecule.
    """
    cells, legends = list[str](), list[str]()
    for (first, second), found in zip(ends, lines, strict=True):
        fractions = np.linspace(0, 1, len(found))
        cells += [first, *(one or "" for one in found), second]
        legends += [
            "from",
            *(_legend(one, f"{fraction:.2f}") for one, fraction in zip(found, fractions, strict=True)),
            "to",
        ]
    return molecule_grid(cells, caption, legends, columns=len(lines[0]) + 2)


def direction_plot(
    name: str,
    true: Floats,
    predicted: Floats,
    caption: str,
    steps: Floats,
    values: Floats,
    start: int,
    example: Sequence[str | None],
) -> bytes:
    """Return a figure of a property along its direction.

    Panels: predicted against true values; median and quartiles on a traversal; how often a traversal decodes to a
    molecule; below them one traversal.

    Parameters
    ----------
    true, predicted
        Values (molecules,) of test molecules, and those predicted from latents.
    steps
        Positions along the direction (steps,), in standard deviations.
    values
        (starts, steps), NaN where a graph is no molecule.
    start, example
        One of the starts, and its decoded SMILES by step.
    """
    title = NAMES[name]
    canvas = new_figure(11.5, 3.1)
    left, middle, right = canvas.subplots(1, 3)
    left.plot(true, predicted, ".", color=GENERATED, alpha=0.35, markersize=4, markeredgewidth=0)
    both = np.concatenate([true, predicted])
    ends = [both.min(), both.max()]
    left.plot(ends, ends, color=REAL, linewidth=0.8, dashes=(4, 3))
    left.set(xlabel=f"{title} of {len(true):,} test molecules", ylabel="predicted from latents")
    left.set_title(caption, color=INK, fontsize=9.5, loc="left")
    counts = np.isfinite(values).sum(0)
    seen = counts > 1
    quartiles = [np.nanpercentile(values[:, seen], fraction, axis=0) for fraction in (25, 50, 75)]
    middle.fill_between(steps[seen], quartiles[0], quartiles[2], color=GENERATED, alpha=0.18, linewidth=0)
    middle.plot(steps[seen], quartiles[1], color=GENERATED, linewidth=1.8)
    middle.set(xlabel="standard deviations along it", ylabel=title)
    middle.set_title("median and quartiles of decoded molecules", color=INK, fontsize=9.5, loc="left")
    right.plot(steps, 100 * counts / len(values), color=GREEN, linewidth=1.8)
    right.set(xlabel="standard deviations along it", ylabel="molecules, %", ylim=(0, 103))
    right.set_title(f"{len(values)} traversals: valid molecules", color=INK, fontsize=9.5, loc="left")
    canvas.subplots_adjust(left=0.06, right=0.99, top=0.89, bottom=0.18, wspace=0.25)
    chosen = range(0, len(steps), 2)
    places = [f"{steps[at] + 0.0:+.0f} sd" for at in chosen]
    known = [f": {title.partition(',')[0]} {values[start, at]:.2f}" if example[at] else "" for at in chosen]
    legends = [_legend(example[at], place + value) for at, place, value in zip(chosen, places, known, strict=True)]
    below = molecule_grid([example[at] or "" for at in chosen], "One traversal", legends, columns=len(legends))
    return stack_vertically([render(canvas), below])


def sweep_plot(
    curves: Mapping[str, Mapping[str, Floats]], values: Sequence[float], option: str, marks: Mapping[str, Floats]
) -> bytes:
    """Return a figure with a panel for each run: metrics in percent by an option's value, mean and range over seeds.

    Seeds without a metric at a value are left out there.

    Parameters
    ----------
    curves
        Panel to metric to (seeds, values), fractions.
    marks
        Metric to a published value, a dotted line.
    """
    canvas = new_figure(3.1 * len(curves) + 0.9, 3.0)
    panels = canvas.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    colors = [GENERATED, WARM, GREEN, INK]
    for axis, (title, scores) in zip(panels, curves.items(), strict=True):
        for color, (name, found) in zip(colors, scores.items(), strict=False):
            fractions = np.ma.masked_invalid(100 * found)
            low, high, mean = (of.filled(np.nan) for of in (fractions.min(0), fractions.max(0), fractions.mean(0)))
            axis.fill_between(values, low, high, color=color, alpha=0.16, linewidth=0)
            axis.plot(values, mean, color=color, linewidth=1.8, label=name.replace("_", " "))
            if name in marks:
                axis.axhline(100 * float(marks[name]), color=color, linewidth=0.9, dashes=(1, 2))
        axis.set_title(title.replace("_", " "), color=INK, fontsize=10, loc="left")
        axis.set(xlabel=option, ylim=(0, 103), xlim=(min(values), max(values)))
    panels[0].set_ylabel("%")
    if marks:
        panels[0].plot([], [], color=SOFT, linewidth=0.9, dashes=(1, 2), label="published")
    canvas.legend(*panels[0].get_legend_handles_labels(), loc="upper right", ncols=4, frameon=False, fontsize=9)
    width = 3.1 * len(curves) + 0.9
    canvas.subplots_adjust(left=0.5 / width, right=1 - 0.12 / width, top=0.8, bottom=0.17, wspace=0.1)
    return render(canvas)


def _legend(found: str | None, words: str) -> str:
    return words if found else f"{words}: {INVALID}"
