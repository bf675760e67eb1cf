"""Figures of a page as PDF files, one a figure, for a paper."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from fedlab.files import write_atomically
from fedlab.report import charts, cost_charts
from fedlab.report.charts import Drawing
from fedlab.report.figures import Plot
from fedlab.report.run_tables import primary_group
from fedlab.runs.result import Result


def write_run_figures(result: Result) -> list[Path]:
    """Write the figures of a run's page into ``figures/`` of its directory and return their paths."""
    measure = result.metric_table.title(primary_group(result))
    named = [(f"{measure} {drawing.title}", drawing) for drawing in charts.primary_figures(result)[1]]
    _, seconds = cost_charts.time_table(result)
    _, traffic = cost_charts.traffic_table(result)
    named += [(drawing.title, drawing) for drawing in (*charts.other_figures(result)[0], seconds, *traffic)]
    return write_figures(result.directory / "figures", named)


def write_figures(folder: Path, named: Iterable[tuple[str, Drawing]]) -> list[Path]:
    """Write drawings under names made of words; of two with one name the second one gets a number."""
    paths: list[Path] = []
    for words, drawing in named:
        if not isinstance(drawing.picture, Plot):
            continue
        stem = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-") or "figure"
        taken = {path.stem for path in paths}
        name = next(n for n in (stem, *(f"{stem}-{i}" for i in range(2, len(paths) + 3))) if n not in taken)
        paths.append(folder / f"{name}.pdf")
        folder.mkdir(exist_ok=True)
        write_atomically(paths[-1], drawing.picture.pdf())
    return paths
