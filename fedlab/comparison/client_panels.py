"""Panels of one client for each variant of a comparison: maps of features, weights, confusions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fedlab.errors import FedlabError
from fedlab.metrics import Metric
from fedlab.report import client_plots, plots
from fedlab.report.charts import Drawing
from fedlab.report.client_plots import ClientPlotData
from fedlab.report.client_predictions import (
    MAX_OF_MANY,
    class_names,
    confusion_table,
    right_sentence,
    run_config,
)
from fedlab.report.run_tables import TableRow, primary_group
from fedlab.runs.client_distribution import FEW

if TYPE_CHECKING:
    from fedlab.comparison.page_tables import SeriesStyle
    from fedlab.comparison.result import Comparison
    from fedlab.runs.result import Result

MAX_PANELS = 60  # of a client and a variant each, in one page; some 40 kB each


@dataclass(frozen=True)
class ClientPanel:
    """One client after the run of one variant with one seed; parts that it does not have are left out."""

    variant: str
    slot: int
    maps: list[Drawing]
    weights: Drawing | None
    heads: list[str]
    confusion: list[TableRow]
    right: str


@dataclass
class ClientPanels:
    """Panels by client; the reasons why variants have none; and the number of clients without room on the page."""

    seed: int
    by_client: dict[str, list[ClientPanel]] = field(default_factory=dict)
    missing: list[tuple[str, str]] = field(default_factory=list)
    hidden: int = 0

    @property
    def glyphs(self) -> bool:
        """True if some map shows classes."""
        return any(len(panel.maps) > 2 for panels in self.by_client.values() for panel in panels)


def client_panels(comparison: Comparison, styles: Sequence[SeriesStyle]) -> ClientPanels:
    """Return every variant's clients after its run with the first seed that finished everywhere, or at all."""
    first = [key for key in comparison.seeds if all(_run(comparison, style, key) for style in styles)]
    found = ClientPanels((first or comparison.seeds)[0])
    room = max(1, MAX_PANELS // max(len(styles), 1))
    clients_in_all = 0
    for style in styles:
        result = _run(comparison, style, found.seed)
        if result is None:
            found.missing.append((style.name, f"its run with seed {found.seed} is not there"))
            continue
        config = run_config(result)
        number = len(config.clients) if config else 0
        clients_in_all = max(clients_in_all, number)
        try:
            clients = client_plots.load(result, room if number <= FEW else min(room, MAX_OF_MANY))
        except FedlabError as error:
            found.missing.append((style.name, str(error)))
            continue
        names = class_names(config)
        metric = result.metric_table.find(primary_group(result))
        for client in clients:
            panel = draw(client, style, names, metric)
            if panel.maps or panel.confusion:
                found.by_client.setdefault(client.name, []).append(panel)
    if found.by_client:
        found.hidden = max(0, clients_in_all - len(found.by_client))
    return found


def _run(comparison: Comparison, style: SeriesStyle, seed: int) -> Result | None:
    for cell, result in comparison.results:
        key = (cell.label, *(cell.options.get(option, "") for option in comparison.grid))
        if key == style.key and cell.seed == seed:
            return result
    return None


def draw(client: ClientPlotData, style: SeriesStyle, names: Sequence[str], metric: Metric) -> ClientPanel:
    """Return the figures and the table of one client; ``metric`` is what its run is judged by."""
    weights = None
    if len(client.target_weights):
        far = [float(np.average(np.arange(len(c)) + 0.5, weights=c)) / len(c) for c in _weights(client)]
        alt = f"Weights for {client.name}: on average {far[0]:.2f} of source examples, {far[1]:.2f} of its own"
        weights = Drawing(
            f"weights w(x): mean {far[0]:.2f} of the source, {far[1]:.2f} of {client.name}",
            plots.histogram(*_weights(client), alt),
        )
    return ClientPanel(
        style.name, style.slot, _maps(client), weights, *confusion_table(client, names), right_sentence(client, metric)
    )


def _weights(client: ClientPlotData) -> tuple[client_plots.Array, client_plots.Array]:
    return client.source_weights, client.target_weights


def _maps(client: ClientPlotData) -> list[Drawing]:
    """Return maps before and after by domain, and after by class where the labels are the model's."""
    clouds = (client.source_before, client.target_before, client.source_after, client.target_after)
    within, drawings = plots.bounds(*clouds), []
    for when, source, target in (("before", *clouds[:2]), ("after", *clouds[2:])):
        if len(target):
            alt = f"Features of the source and of {client.name} {when}, in the plane of two principal components"
            drawings.append(Drawing(when, plots.domains(source, target, within, alt)))
    if len(client.target_after) and plots.has_glyphs(client.source_labels, client.target_labels):
        layers = [
            (client.source_after, client.source_labels, plots.SOURCE),
            (client.target_after, client.target_labels, plots.TARGET),
        ]
        alt = f"The features after, each written as its class, of the source and of {client.name}"
        drawings.append(Drawing("after, by class", plots.classes(layers, within, alt)))
    return drawings
