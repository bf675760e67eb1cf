"""One client as each variant of a comparison leaves it: maps of features, weights, confusions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fedlab.errors import FedlabError
from fedlab.registry import load_config
from fedlab.report import client_plots, plots
from fedlab.report.charts import Drawing
from fedlab.report.client_plots import ClientView
from fedlab.report.confusions import shares
from fedlab.report.run_page import Cell, Row, judged
from fedlab.workload import SupportsClassNames

if TYPE_CHECKING:
    from fedlab.comparison.result import Comparison
    from fedlab.report.comparison_tables import Variant
    from fedlab.runs.result import Result

PORTRAITS = 60  # of a client and a variant each, in one page; some 40 kB each


@dataclass(frozen=True)
class Portrait:
    """What one variant made of one client, from one seed; parts that there are not are left out."""

    variant: str
    slot: int
    maps: list[Drawing]
    weights: Drawing | None
    heads: list[str]
    confusion: list[Row]
    right: str


@dataclass
class Gallery:
    """Portraits by client; why some variants have none; and how many clients there was no room for."""

    seed: int
    by_client: dict[str, list[Portrait]] = field(default_factory=dict)
    missing: list[tuple[str, str]] = field(default_factory=list)
    hidden: int = 0

    @property
    def glyphs(self) -> bool:
        """Whether some map shows classes."""
        return any(len(portrait.maps) > 2 for portraits in self.by_client.values() for portrait in portraits)


def gallery(comparison: Comparison, lines: Sequence[Variant]) -> Gallery:
    """Every variant's clients after its run with the first seed that finished everywhere, or at all."""
    first = [key for key in comparison.seeds if all(_run(comparison, line, key) for line in lines)]
    found = Gallery((first or comparison.seeds)[0])
    for line in lines:
        result = _run(comparison, line, found.seed)
        if result is None:
            found.missing.append((line.name, f"its run with seed {found.seed} is not there"))
            continue
        try:
            views = client_plots.views(result)
        except FedlabError as error:
            found.missing.append((line.name, str(error)))
            continue
        names = class_names(result)
        for view in views:
            portrait = draw(view, line, names, judged(result.rounds))
            if portrait.maps or portrait.confusion:
                found.by_client.setdefault(view.name, []).append(portrait)
    room = max(1, PORTRAITS // max(len(lines), 1))
    names = list(found.by_client)
    found.hidden = len(names[room:])
    found.by_client = {name: found.by_client[name] for name in names[:room]}
    return found


def _run(comparison: Comparison, line: Variant, seed: int) -> Result | None:
    for cell, result in comparison.results:
        key = (cell.label, *(cell.knobs.get(knob, "") for knob in comparison.grid))
        if key == line.key and cell.seed == seed:
            return result
    return None


def class_names(result: Result) -> Sequence[str]:
    """Names by label, of a workload that has them."""
    try:
        workload = load_config(str(result.directory / "config.toml")).workload
    except FedlabError:  # what the page has kept of the run can be shown without its workload
        return ()
    return workload.classes if isinstance(workload, SupportsClassNames) else ()


def draw(view: ClientView, line: Variant, names: Sequence[str] = (), metric: str = "accuracy") -> Portrait:
    """The figures and the table of one view."""
    right = ""
    if view.confusion.sum():
        found = {name: f"{100 * share:.1f} %" for name, share in shares(view.confusion).items()}
        right = f"{found['accuracy']} of its test labels right"
        if metric == "miou":
            right = f"mean IoU {found['miou']}, {found['accuracy']} of its test pixels right"
    weights = None
    if len(view.target_weights):
        far = [float(np.average(np.arange(len(c)) + 0.5, weights=c)) / len(c) for c in _weights(view)]
        words = f"Typicality for {view.name}: on average {far[0]:.2f} of source examples, {far[1]:.2f} of its own"
        weights = Drawing(
            f"weights w(x): mean {far[0]:.2f} of the source, {far[1]:.2f} of {view.name}",
            plots.histogram(*_weights(view), words),
        )
    return Portrait(line.name, line.slot, _maps(view), weights, *_confusion(view, names), right)


def _weights(view: ClientView) -> tuple[client_plots.Array, client_plots.Array]:
    return view.source_weights, view.target_weights


def _maps(view: ClientView) -> list[Drawing]:
    """Before and after by domain; after by class where the labels are the model's."""
    clouds = (view.source_before, view.target_before, view.source_after, view.target_after)
    within, drawings = plots.box(*clouds), []
    for when, source, target in (("before", *clouds[:2]), ("after", *clouds[2:])):
        if len(target):
            words = f"Features of the source and of {view.name} {when}, in the plane of two principal components"
            drawings.append(Drawing(when, plots.domains(source, target, within, words)))
    if len(view.target_after) and plots.has_glyphs(view.source_labels, view.target_labels):
        layers = [
            (view.source_after, view.source_labels, plots.SOURCE),
            (view.target_after, view.target_labels, plots.TARGET),
        ]
        words = f"The features after, each written as its class, of the source and of {view.name}"
        drawings.append(Drawing("after, by class", plots.classes(layers, within, words)))
    return drawings


def _confusion(view: ClientView, classes: Sequence[str]) -> tuple[list[str], list[Row]]:
    """Heads and a row for each true class: percent of its examples by predicted class; rows have the names."""
    counts = view.confusion
    if not counts.size:
        return [], []
    heads = [str(i) for i in range(len(counts))]
    names = [f"{i} {name}" for i, name in enumerate(classes)] if len(classes) == len(counts) else heads
    percent = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    rows = [
        Row(name, [Cell(f"{100 * share:.0f}" if round(100 * share) else "", heat=float(share)) for share in row])
        for name, row in zip(names, percent, strict=True)
    ]
    return heads, rows
