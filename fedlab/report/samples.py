"""Samples of generative models: the pictures that a run kept, as images inside a page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from fedlab.runs.directory import RunDirectory

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
    for name, by_round in RunDirectory(directory).images().items():
        *before, last = by_round
        steps = max(len(before) - 1, 1)
        count = min(EARLIER, len(before))
        chosen = sorted({before[round(i * steps / max(count - 1, 1))] for i in range(count)}) if before else []
        earlier = [Image.read(f"round {number}", by_round[number]) for number in chosen]
        found.append(Series(words(name), Image.read(f"{words(name)}, round {last}", by_round[last]), earlier))
    return found


def words(name: str) -> str:
    """Return a picture's name for people."""
    return name.replace("_", " ").replace("-", " ")
