"""Strategies side by side: ``report.html`` of a comparison, one page that needs no network and no other file.

Its only script sorts tables; without it, everything can be read.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from fedlab.comparison import client_panels, columns, coverage, learning_curves, page_tables
from fedlab.comparison.page_tables import SeriesStyle
from fedlab.data.sources import DataSource, describe_sources
from fedlab.errors import plural
from fedlab.files import write_atomically
from fedlab.report import commands, partition_table, samples, template
from fedlab.runs.directory import RunDirectory
from fedlab.runs.formatting import p_value

if TYPE_CHECKING:
    import pandas as pd

    from fedlab.comparison.cell import Cell
    from fedlab.comparison.result import Comparison

CHANCE = 0.05  # p-values from here on are called chance
SCRIPT = (template.FOLDER / "sort.js").read_text(encoding="utf-8")


def write_comparison(comparison: Comparison) -> Path:
    """Write ``report.html`` into the comparison's folder and return its path; an older one is replaced."""
    path = comparison.directory / "report.html"
    write_atomically(path, render(comparison).encode())
    return path


def render(comparison: Comparison) -> str:
    """Return the page."""
    table, metrics = comparison.summary(), comparison.metric_table
    styles = page_tables.variants(comparison, table)
    heads, rows = page_tables.summary_table(comparison, table, styles)
    against, differences = page_tables.difference_table(comparison, table, styles)
    heat, cells = page_tables.heat_table(comparison, styles) if styles and not comparison.is_global else ([], [])
    return template.render(
        "comparison.html",
        comparison=comparison,
        summary=summary(comparison, table, styles),
        pending=sum(cell.status == "pending" for cell in comparison.cells),
        failures=failures(comparison),
        uses_labels=[label for label in comparison.labels if label in comparison.uses_labels],
        heads=heads,
        rows=rows,
        judged=judged(comparison, table, styles),
        coverage=coverage.notes(comparison),
        against=against,
        differences=differences,
        wilcoxon=columns.wilcoxon_method(table),
        ranks=learning_curves.rank_figure(comparison, styles),
        heat=heat,
        cells=cells,
        keys=learning_curves.legend(styles),
        curves=learning_curves.curve_figures(comparison, styles) if styles else [],
        sometimes_missing=learning_curves.sometimes_missing(comparison, styles) if styles else [],
        hidden_clients=learning_curves.hidden_clients(comparison, styles),
        costs=learning_curves.cost_figures(comparison, styles) if styles else [],
        pictures=sample_images(comparison, styles),
        panels=client_panels.client_panels(comparison, styles),
        splits=splits(comparison),
        percent=metrics.is_fraction(comparison.metric),
        measure=metrics.title(comparison.metric),
        runs=runs(comparison, styles),
        facts=facts(comparison),
        cell_rows=[
            (cell_name(comparison, cell), cell.seed, cell.status, cell.device, cell.run) for cell in comparison.cells
        ],
        **script(),
    )


def script() -> dict[str, str]:
    """Return the script that sorts tables, and its hash, by which a page allows no other one."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return {"script": Markup(SCRIPT), "script_hash": f"sha256-{digest}"}


def failures(comparison: Comparison) -> list[tuple[str, int, str]]:
    """Return variant, seed and reason of each cell that failed."""
    return [(cell_name(comparison, cell), cell.seed, cell.error or "no reason is known") for cell in comparison.failed]


def cell_name(comparison: Comparison, cell: Cell) -> str:
    """Return the name of a cell's variant for people."""
    return columns.row_name(comparison, [cell.label, *(cell.options.get(option, "") for option in comparison.grid)])


def summary(comparison: Comparison, table: pd.DataFrame, styles: Sequence[SeriesStyle]) -> str:
    """Return the comparison in one or two sentences: which variant leads, by how much, and if that may be chance."""
    up, metric, metrics = comparison.more_is_better, comparison.metric, comparison.metric_table
    percent = metrics.is_fraction(metric)
    seeds = plural(len(comparison.seeds), "seed")
    known = [
        (style, row)
        for style, row in zip(styles, page_tables.records(table), strict=True)
        if math.isfinite(row["mean"])
    ]
    if not known:
        return "No cell of this comparison has finished yet."
    if len(known) == 1:
        return f"Only {known[0][0].name} has a result so far, and nothing to be compared with."
    known = [pair for pair in known if pair[0].key[0] not in comparison.uses_labels] or known
    if up is None:
        return (
            f"{plural(len(styles), 'variant')} on {seeds}, by {metrics.title(metric)}; which way is better is "
            "not known."
        )
    if not coverage.rivals_have_the_same(comparison):
        differ = "clients" if coverage.rivals_have_different_clients(comparison) else "seeds"
        return (
            f"{plural(len(styles), 'variant')} on {seeds}. They do not all have the same {differ}: compare those "
            "that do."
        )
    style, row = (max if up else min)(known, key=lambda pair: pair[1]["mean"])
    text = metrics.format(metric, row["mean"]) + page_tables.margin(row["low"], row["high"], percent)
    start = f"Of {len(styles)} variants on {seeds}, {style.name} has the best {metrics.title(metric)}: {text}"
    if not math.isfinite(row["difference"]):
        return f"{start}." if style.key[0] != comparison.baseline else f"{start}. It is the baseline itself."
    size, side = abs(row["difference"]), "above" if row["difference"] > 0 else "below"
    difference = f"{100 * size:.1f} points" if percent else f"{size:.3g} {metrics.find(metric).unit}".rstrip()
    against = f"{start}, {difference} {side} {comparison.baseline}"
    if not math.isfinite(row["p_holm"]):
        return f"{against}. One seed does not say how much of that is chance."
    p = p_value(row["p_holm"])
    chance = ", which may be chance" if row["p_holm"] >= CHANCE else ""
    return f"{against} (p {p if p.startswith('<') else '= ' + p}){chance}."


def judged(comparison: Comparison, table: pd.DataFrame, styles: Sequence[SeriesStyle]) -> str:
    """Return the metric that each variant is judged by; "" where that is one for all."""
    by: dict[str, list[str]] = {}
    for style, metric in zip(styles, table["metric"], strict=True):
        by.setdefault(comparison.metric_table.full_title(str(metric)), []).append(style.key[0])
    if len(by) < 2:
        return ""
    return "; ".join(f"{metric} of {', '.join(dict.fromkeys(names))}" for metric, names in by.items())


def splits(comparison: Comparison) -> list[tuple[str, partition_table.Split]]:
    """Return the data of the first seed's clients: one split for all variants, or each with its variants."""
    owners: dict[str, list[str]] = {}
    for cell in comparison.cells:
        path = comparison.path(cell) / partition_table.FILE
        if cell.seed == comparison.seeds[0] and path.is_file():
            owners.setdefault(path.read_text(encoding="utf-8"), []).append(cell_name(comparison, cell))
    return [
        (", ".join(names) if len(owners) > 1 else "", partition_table.parse(text)) for text, names in owners.items()
    ]


def runs(comparison: Comparison, styles: Sequence[SeriesStyle]) -> list[tuple[str, str]]:
    """Return a command for one run of each variant."""
    found: dict[str, str] = {}
    for cell, result in comparison.results:
        name = cell_name(comparison, cell)
        if name not in found:
            again = commands.repeat(result) or commands.repeat_from_preset(result, comparison.preset)
            found[name] = again or commands.repeat_from_config(result)
    return [(style.name, found[style.name]) for style in styles]


def facts(comparison: Comparison) -> dict[str, str]:
    """Return the known facts of the comparison as a whole, by name."""
    budget = ", ".join(f"{name} {value:g}" for name, value in (comparison.budget or {}).items())
    grid = "; ".join(f"{option} = {', '.join(values)}" for option, values in comparison.grid.items())
    target = "" if comparison.target is None else comparison.metric_table.format(comparison.metric, comparison.target)
    commits = ", ".join(comparison.commits or [comparison.git_commit])
    table = {
        "preset": comparison.preset,
        "seeds": ", ".join(map(str, comparison.seeds)),
        "baseline": comparison.baseline,
        "metric": comparison.metric,
        "grid": grid,
        "target": target,
        "budget": budget,
        "training data": training_data(comparison),
        "created": comparison.created.replace("T", " ").replace("+0000", " UTC"),
        "git commit": commits.replace("-dirty", " with uncommitted changes"),
    }
    return {name: value for name, value in table.items() if value}


def training_data(comparison: Comparison) -> str:
    """Return the sets that the first finished cell trained on; "" where it names none."""
    data = next((result.manifest.get("data", ()) for _, result in comparison.results), ())
    return describe_sources([DataSource(**source) for source in data])


def sample_images(
    comparison: Comparison, styles: Sequence[page_tables.SeriesStyle]
) -> list[tuple[str, list[samples.Image]]]:
    """Each kind of picture, with the newest of every variant's run with the first seed that finished."""
    found: dict[str, dict[str, samples.Image]] = {}
    for cell, result in comparison.results:
        name = columns.row_name(comparison, [cell.label, *(cell.options.get(option, "") for option in comparison.grid)])
        for kind, by_round in RunDirectory(result.directory).images().items():
            found.setdefault(kind, {}).setdefault(name, samples.Image.read(name, by_round[max(by_round)]))
    order = [style.name for style in styles]
    return [
        (samples.words(kind), sorted(images.values(), key=lambda i: order.index(i.title)))
        for kind, images in found.items()
    ]
