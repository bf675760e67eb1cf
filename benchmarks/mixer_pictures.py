"""The figures of ``benchmarks.mixer``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS = {"Mixer": "#1f77b4", "ConvNet": "#d62728", "ViT": "#2ca02c"}
STYLES = {"plain": "-", "patches": "--", "pixels": ":"}


def permutations(
    curves: Mapping[tuple[str, str], Sequence[Sequence[float]]], part: int, about: str, picture: Path
) -> None:
    """Training losses (seeds, points) by network and arrangement: a panel a network, bands from least to most."""
    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for panel, network in zip(panels, ("Mixer", "ConvNet"), strict=True):
        for (name, kind), runs in curves.items():
            if name != network:
                continue
            losses = np.array(runs)
            steps = part * (np.arange(losses.shape[1]) + 0.5)
            if kind in STYLES:
                panel.plot(steps, losses.mean(0), STYLES[kind], color=COLORS[network], label=kind)
                panel.fill_between(steps, losses.min(0), losses.max(0), color=COLORS[network], alpha=0.12, lw=0)
            else:
                panel.plot(steps, losses.mean(0), "x", color="black", ms=4, label=kind)
        finish(panel, network, "steps")
    panels[0].set_ylabel(f"training loss, {about}")
    save(figure, picture)


def sizes(found: Mapping[tuple[str, str, int], Sequence[float]], before: str, about: str, picture: Path) -> None:
    """Accuracy (seeds,) by network, what it was pre-trained on if anything, and images; bars: least to most."""
    figure, panel = pyplot.subplots(figsize=(6, 4))
    lines = [(network, first) for network in COLORS for first in ("", before)]
    for number, (network, first) in enumerate(lines):
        counts = sorted(count for name, other, count in found if (name, other) == (network, first))
        values = np.array([found[network, first, count] for count in counts])
        mean = values.mean(1)
        panel.errorbar(
            np.array(counts) * 1.03 ** (number - len(lines) / 2),  # side by side
            mean,
            [mean - values.min(1), values.max(1) - mean],
            fmt="o-" if first else "o--",
            color=COLORS[network],
            ms=4,
            elinewidth=0.8,
            label=f"{network}, {f'after {before}' if first else 'from scratch'}",
        )
    panel.set_xscale("log")
    panel.set_xticks(counts, [f"{count:,}" for count in counts], minor=False)
    panel.minorticks_off()
    panel.set_ylabel(f"accuracy in percent, {about}")
    finish(panel, "", "training images")
    save(figure, picture)


def finish(panel: Axes, title: str, below: str) -> None:
    """Title, names and a light frame."""
    panel.set_title(title)
    panel.set_xlabel(below)
    panel.legend(frameon=False, fontsize=8)
    panel.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, picture: Path) -> None:
    """Write it as a PNG file."""
    figure.tight_layout()
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)
