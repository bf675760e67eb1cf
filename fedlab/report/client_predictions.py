"""Predictions of a run's models for its clients: confusion matrices and example images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fedlab.config.schema import Config
from fedlab.errors import FedlabError
from fedlab.metrics import Metric
from fedlab.registry import load_run_config
from fedlab.report import client_plots
from fedlab.report.client_plots import ClientPlotData
from fedlab.report.confusions import STATISTICS, accuracy
from fedlab.report.example_images import ExampleImage, example_images
from fedlab.report.run_tables import TableCell, TableRow, primary_group
from fedlab.runs.client_distribution import FEW, worst_first
from fedlab.runs.result import Result
from fedlab.workload import SupportsClassNames

MAX_OF_MANY = 6  # clients that are shown where there are too many to be shown one by one


@dataclass(frozen=True)
class ClientPredictions:
    """One client: its confusion matrix, how many of its labels are right, and images; what it lacks is empty."""

    name: str
    heads: list[str]
    confusion: list[TableRow]
    right: str
    images: list[ExampleImage]


@dataclass(frozen=True)
class Predictions:
    """The clients of a run, or the reason why there are none; ``hidden`` are those without room on the page."""

    clients: list[ClientPredictions] = field(default_factory=list)
    hidden: int = 0
    missing: str = ""


def predictions_of(result: Result) -> Predictions:
    """Return what the newest checkpoint of a run predicts on its clients' test data, computed once a run."""
    config = run_config(result)
    number = len(config.clients) if config else 0
    try:
        found = client_plots.load(result, number if number <= FEW else MAX_OF_MANY, worst_clients(result, number))
    except FedlabError as error:
        return Predictions(missing=str(error))
    names, metric = class_names(config), result.metric_table.find(primary_group(result))
    clients = [
        ClientPredictions(
            client.name,
            *confusion_table(client, names),
            right_sentence(client, metric),
            example_images(client.example_images, client.example_classes, client.example_scores, names),
        )
        for client in found
    ]
    shown = [client for client in clients if client.confusion or client.images]
    return Predictions(shown, max(0, number - len(found)) if shown else 0)


def worst_clients(result: Result, number: int) -> list[str]:
    """Return the worst clients of many, by what the run is judged by; none of few, or where none was tested."""
    table, last = result.metric_table, result.rounds[-1]["clients"]
    name = table.primary_metric(result.metric_names)
    return worst_first(last, name, table.direction(name))[:MAX_OF_MANY] if number > FEW else []


def run_config(result: Result) -> Config | None:
    """Return a run's configuration; None without its workload: what the page has kept can be shown all the same."""
    try:
        return load_run_config(result.directory / "config.toml")
    except FedlabError:
        return None


def class_names(config: Config | None) -> Sequence[str]:
    """Return names by label, of a workload that has them."""
    return config.workload.classes if config and isinstance(config.workload, SupportsClassNames) else ()


def right_sentence(client: ClientPlotData, metric: Metric) -> str:
    """Return how many test labels of a client are predicted; ``metric`` is what its run is judged by."""
    if not client.confusion.sum():
        return ""
    right = f"{100 * accuracy(client.confusion):.1f} % of its test labels right"
    statistic = STATISTICS.get(metric.confusion, accuracy)
    return right if statistic is accuracy else f"{metric.title} {100 * statistic(client.confusion):.1f} %, {right}"


def confusion_table(client: ClientPlotData, classes: Sequence[str]) -> tuple[list[str], list[TableRow]]:
    """Return heads and a row for each true class: percent of its examples by predicted class; rows have the names."""
    counts = client.confusion
    if not counts.size:
        return [], []
    heads = [str(i) for i in range(len(counts))]
    names = [f"{i} {name}" for i, name in enumerate(classes)] if len(classes) == len(counts) else heads
    percent = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    rows = [
        TableRow(
            name,
            [
                TableCell(f"{100 * share:.0f}" if round(100 * share) else "", value=float(count), heat=float(share))
                for share, count in zip(row, whole, strict=True)
            ],
        )
        for name, row, whole in zip(names, percent, counts, strict=True)
    ]
    return heads, rows
