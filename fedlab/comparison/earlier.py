"""Comparisons of one folder: the tables of an earlier one are moved aside before another's take their place.

Comparisons of one preset share its folder, and with it the cells that they have in common. Their tables are different:
those of the latest are in the folder itself, those of every other in ``earlier/<hash>/``, which
:meth:`fedlab.Comparison.read` opens as well.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

from fedlab.comparison.result import FACTS, FIGURES, Comparison

EARLIER = "earlier"
FILES = ("table.csv", "clients.csv", "table.json", "table.md", "table.tex", "report.html")
NOT_COMPARED = ("--jobs", "--out")  # options of the command that change nothing of what is found


def identity(comparison: Comparison) -> str:
    """Return a name (12 hexadecimal digits) for what is compared: the same for the same command and options."""
    words = shlex.split(comparison.command)
    asked = [
        word
        for before, word in zip(["", *words], words, strict=False)
        if word not in NOT_COMPARED and before not in NOT_COMPARED
    ]
    cells = [(cell.label, cell.seed, dict(cell.options), Path(cell.run).name) for cell in comparison.cells]
    content = [cells, asked, comparison.baseline, comparison.target, comparison.budget]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def keep_earlier(comparison: Comparison) -> Path | None:
    """Move the tables of another comparison in the folder of this one aside; return where to, None without one.

    A kill between two files loses none: the next call moves the rest.

    Raises
    ------
    OSError
        When the folder cannot be written.
    """
    folder = comparison.directory
    if not (folder / FACTS).is_file():
        return None
    found = Comparison.read(folder)
    if identity(found) == identity(comparison):
        return None
    place = folder / EARLIER / identity(found)
    place.mkdir(parents=True, exist_ok=True)
    moved = [replace(cell, run=f"../../{cell.run}") for cell in found.cells]
    replace(found, directory=place, cells=moved).write()
    for name in FILES:
        if (folder / name).is_file():
            (folder / name).replace(place / name)
    if (folder / FIGURES).is_dir():
        shutil.rmtree(place / FIGURES, ignore_errors=True)
        (folder / FIGURES).replace(place / FIGURES)
    return place


def earlier_comparisons(folder: Path) -> list[Path]:
    """Return the folders of earlier comparisons, oldest first."""
    found = [path.parent for path in folder.glob(f"{EARLIER}/*/{FACTS}")]
    return sorted(found, key=lambda path: (Comparison.read(path).created, path.name))
