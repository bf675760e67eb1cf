"""Figures of molecules, as PNG bytes: grids by RDKit, histograms of properties and curves by matplotlib.

Paper is white in every theme, as chemists draw, and all molecules of a grid have one scale. Colors and their meaning
are those of the report's pages: gray for real molecules, blue for generated ones.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rdkit import Chem

from fedlab.evaluation.distances import Floats
from fedlab.evaluation.molecules import DESCRIPTORS, properties
from fedlab.evaluation.png import new_figure, optimize_png, to_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS, ROWS = 6, 4
PANEL = 184  # pixels of a molecule's side
MARGIN, LINE = 16, 26  # pixels around a grid, and of a line of its caption
INK, SOFT, RULE, REAL, GENERATED = "#20262c", "#5b656e", "#d9dcda", "#858d94", "#2f6db3"
NAMES: Mapping[str, str] = {"qed": "QED", "logp": "logP", "weight": "weight, Da"}
LIMITS: Mapping[str, tuple[float, float]] = {"qed": (0.0, 1.0)}  # of the axis, where the property has its own
BINS = 24


def molecule_grid(smiles: Sequence[str], caption: str, legends: Sequence[str] = (), columns: int = COLUMNS) -> bytes:
    """Return molecules in rows, each with its legend below, and a caption above; "" is an empty place with its legend.

    Parameters
    ----------
    smiles
        SMILES that RDKit accepts, or "".
    """
    from rdkit.Chem.Draw import rdMolDraw2D  # late: it needs X11 libraries, which only drawing should

    molecules = [Chem.MolFromSmiles(one) if one else Chem.Mol() for one in smiles]
    rows = max(1, -(-len(molecules) // columns))
    width, height = columns * PANEL, rows * PANEL
    page = Image.new("RGB", (width + 2 * MARGIN, height + 2 * MARGIN + LINE + 8), "white")
    ImageDraw.Draw(page).text((MARGIN + 6, MARGIN), caption, INK, _font(17))
    if molecules:
        drawer = rdMolDraw2D.MolDraw2DCairo(width, height, PANEL, PANEL)
        options = drawer.drawOptions()
        options.fixedBondLength, options.bondLineWidth, options.padding = 30, 1.7, 0.05  # type: ignore[assignment]
        options.legendFontSize, options.minFontSize = 15, 11  # type: ignore[assignment]
        options.setLegendColour((0.36, 0.4, 0.43))
        drawer.DrawMolecules(molecules, legends=list(legends) or [""] * len(molecules))
        drawer.FinishDrawing()
        drawing = Image.open(io.BytesIO(drawer.GetDrawingText()))
        page.paste(drawing, (MARGIN, MARGIN + LINE + 8))
        for number, legend in enumerate(legends):  # RDKit leaves out those of empty places
            if legend and not smiles[number]:
                left, top = MARGIN + number % columns * PANEL, MARGIN + LINE + 8 + number // columns * PANEL
                ImageDraw.Draw(page).text((left + PANEL / 2, top + PANEL / 2), legend, SOFT, _font(13), anchor="mm")
    return optimize_png(page)


def sample_grid(generated: Sequence[str | None]) -> bytes:
    """Return a grid of the first valid molecules of a sample, each once, with how often it was sampled."""
    valid = [one for one in generated if one]
    different = list(dict.fromkeys(valid))
    shown = different[: COLUMNS * ROWS]
    caption = f"{len(valid)} of {len(generated)} generated graphs are molecules, {len(different)} different ones"
    if not valid:
        caption = f"none of {len(generated)} generated graphs is a molecule"
    elif len(shown) < len(different):
        caption += f"; the first {len(shown)}"
    repeats = [valid.count(one) for one in shown]
    return molecule_grid(shown, caption, [f"{count} times" if count > 1 else "" for count in repeats])


def property_histograms(valid: Sequence[str], reference: Sequence[str], caption: str = "") -> bytes:
    """Return histograms of QED, logP, weight and ring sizes of generated molecules over those of real ones."""
    ours, theirs = properties(tuple(valid)) if valid else None, properties(tuple(reference))
    names = list(DESCRIPTORS)
    canvas = new_figure(11.5, 2.9)
    axes = canvas.subplots(1, len(NAMES) + 1)
    for axis, (name, title) in zip(axes, NAMES.items(), strict=False):
        real = theirs.descriptors[:, names.index(name)]
        mine = ours.descriptors[:, names.index(name)] if ours else np.zeros(0)
        low, high = LIMITS.get(name, (min([*real, *mine]), max([*real, *mine])))
        _overlaid(axis, real, mine, np.linspace(low, high or 1.0, BINS + 1))
        axis.set_xlabel(title)
    sizes = range(3, max([9, *theirs.ring_sizes, *(ours.ring_sizes if ours else ())]) + 1)
    edges = np.array([*sizes, sizes[-1] + 1]) - 0.5
    real, mine = (np.array(each.ring_sizes if each else (), float) for each in (theirs, ours))
    _overlaid(axes[-1], real, mine, edges)
    axes[-1].set_xlabel("atoms in a ring")
    axes[-1].set_xticks(list(sizes))
    axes[0].set_ylabel("fraction")
    real_label, own_label = f"{len(reference):,} real molecules", f"{len(valid):,} generated ones"
    handles = [axes[0].patches[0], *axes[0].lines[:1]]
    canvas.legend(handles, [real_label, own_label + caption], loc="upper left", ncols=2, frameon=False, fontsize=9)
    canvas.subplots_adjust(left=0.055, right=0.99, top=0.84, bottom=0.19, wspace=0.22)
    return render(canvas)


def _overlaid(axis: Axes, real: Floats, generated: Floats, edges: Floats) -> None:
    """Draw bars of real values, and the outline of the generated ones, both summing to 1."""
    width, middles = np.diff(edges), (edges[1:] + edges[:-1]) / 2
    for values, is_generated in ((real, False), (generated, True)):
        fractions = np.histogram(values, edges)[0] / max(len(values), 1)
        if is_generated:
            axis.plot(
                np.repeat(edges, 2), np.concatenate([[0], np.repeat(fractions, 2), [0]]), color=GENERATED, linewidth=1.7
            )
        else:
            axis.bar(middles, fractions, width * 0.94, color=REAL, alpha=0.45, linewidth=0)
    axis.set_xlim(edges[0], edges[-1])
    axis.set_ylim(bottom=0)


def render(canvas: Figure) -> bytes:
    """Return a figure in the house style as PNG."""
    for axis in canvas.axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(RULE)
        axis.tick_params(colors=SOFT, labelsize=8, length=3)
        for text in (axis.xaxis.label, axis.yaxis.label):
            text.set(color=INK, fontsize=9.5)
    return to_png(canvas)


def stack_vertically(parts: Sequence[bytes]) -> bytes:
    """Return PNG files stacked vertically, all as wide as the widest."""
    pages = [Image.open(io.BytesIO(part)).convert("RGB") for part in parts]
    width = max(page.width for page in pages)
    resized = [
        page.resize((width, round(page.height * width / page.width)), Image.Resampling.LANCZOS) for page in pages
    ]
    whole = Image.new("RGB", (width, sum(page.height for page in resized)), "white")
    top = 0
    for page in resized:
        whole.paste(page, (0, top))
        top += page.height
    return optimize_png(whole)


def _font(size: int) -> ImageFont.FreeTypeFont:
    from matplotlib import font_manager

    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)
