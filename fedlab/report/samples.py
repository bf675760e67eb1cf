"""Samples of generative models: the pictures that a run kept, as images inside a page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from fedlab.report import comparison_tables
from fedlab.runs.directory import RunDirectory

if TYPE_CHECKING:
    from fedlab.comparison.result import Comparison

EARLIER = 6  # pictures of earlier rounds on a page, evenly spread


@dataclass(frozen=True)
class Image:
    """A picture that needs no other file: what it is called and its content as an address."""

    title: str
    address: Markup

    @classmethod
    def read(cls, title: str, path: Path) -> Image:
        """Read a PNG file."""
        return cls(title, Markup("data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()))


@dataclass(frozen=True)
class Series:
    """One kind of picture over a run: the newest, and some before it."""

    name: str
    newest: Image
    earlier: Sequence[Image]


def of_run(directory: Path) -> list[Series]:
    """Return each kind of picture in a run directory."""
    found = []
    for name, by_round in RunDirectory(directory).pictures().items():
        *before, last = by_round
        steps = max(len(before) - 1, 1)
        count = min(EARLIER, len(before))
        chosen = sorted({before[round(i * steps / max(count - 1, 1))] for i in range(count)}) if before else []
        earlier = [Image.read(f"round {number}", by_round[number]) for number in chosen]
        found.append(Series(words(name), Image.read(f"{words(name)}, round {last}", by_round[last]), earlier))
    return found


def of_comparison(
    comparison: Comparison, styles: Sequence[comparison_tables.SeriesStyle]
) -> list[tuple[str, list[Image]]]:
    """Return each kind of picture, with the newest of every variant's run with the first seed that finished."""
    found: dict[str, dict[str, Image]] = {}
    for cell, result in comparison.results:
        name = comparison_tables.name_of(
            comparison, [cell.label, *(cell.knobs.get(knob, "") for knob in comparison.grid)]
        )
        for kind, by_round in RunDirectory(result.directory).pictures().items():
            found.setdefault(kind, {}).setdefault(name, Image.read(name, by_round[max(by_round)]))
    order = [style.name for style in styles]
    return [
        (words(kind), sorted(images.values(), key=lambda i: order.index(i.title))) for kind, images in found.items()
    ]


def words(name: str) -> str:
    """Return a picture's name for people."""
    return name.replace("_", " ").replace("-", " ")
