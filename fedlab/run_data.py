"""Data sets of a run, and statistics of how their examples are divided among clients."""

from __future__ import annotations

from contextlib import suppress

import torch

from fedlab.config.schema import Config
from fedlab.data.sources import DataSource, data_line, full_sets_advice
from fedlab.errors import DataError
from fedlab.workload import SupportsClassNames, SupportsDataSources, SupportsHiddenLabels, Workload


def data_sources(config: Config) -> tuple[DataSource, ...]:
    """Return the sets that server and simulated clients train on; of deployed clients only they themselves know it.

    It is empty for a workload that does not name its sets.
    """
    workload, found = config.workload, list[DataSource]()
    if not isinstance(workload, SupportsDataSources):
        return ()
    clients = range(len(config.clients)) if config.plugins["engine"].spec.simulates_clients else ()
    for partition in (None, *clients):
        with suppress(DataError):  # a server without data, where the strategy needs none
            found += workload.data_sources(partition)
    return tuple(dict.fromkeys(found))


def client_sources(workload: Workload, partition: int) -> tuple[DataSource, ...]:
    """Return the sets that one client trains on; empty for a workload that does not name its sets.

    Raises
    ------
    DataError
        When its data cannot be read.
    """
    return tuple(workload.data_sources(partition)) if isinstance(workload, SupportsDataSources) else ()


def data_notes(config: Config) -> tuple[str, ...]:
    """Return the lines that say which data a run has, and how to get all of it where its options expect that."""
    sources = data_sources(config)
    advice = full_sets_advice(sources) if config.data.expect_full else ""
    return tuple(filter(None, (data_line(sources) if sources else "", advice)))


def class_names(workload: Workload) -> tuple[str, ...]:
    """Return the names of the classes by label, of a workload that has them."""
    return tuple(workload.classes) if isinstance(workload, SupportsClassNames) else ()


def partition_statistics(workload: Workload, clients: int) -> list[dict[str, object]]:
    """Return what the first ``clients`` clients train on, for ``split.json``.

    Returns
    -------
    list
        For each client its ``name``, the number of its ``examples``, and ``labels``: class to count, or None where
        the simulation does not know them or they are not one whole number for each example.
    """
    table: list[dict[str, object]] = []
    for partition, name in enumerate(workload.clients[:clients]):
        data = workload.data(partition, "train")
        labels = data.columns.get("y")
        if labels is None and isinstance(workload, SupportsHiddenLabels):
            with suppress(DataError):  # a set whose labels are nowhere
                labels = workload.labels(partition)
        counts = None
        if labels is not None and labels.dim() == 1 and not labels.is_floating_point():
            values, numbers = torch.unique(labels, return_counts=True)
            counts = dict(zip(map(str, values.tolist()), numbers.tolist(), strict=True))
        table.append({"name": name, "examples": len(data), "labels": counts})
    return table
