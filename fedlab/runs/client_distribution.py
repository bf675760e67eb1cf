"""Metrics of many clients in a few numbers: mean, worst tenth and quantiles, in place of one row a client.

The mean over the worst tenth of the clients is how the fairness of a federated model is reported: Li et al., Fair
Resource Allocation in Federated Learning, ICLR 2020, section 4.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

FEW = 24  # clients that are shown one by one; of more, pages and displays show the distribution
WORST = "worst tenth"
QUANTILES: Mapping[str, float] = {
    "minimum": 0.0,
    "10 %": 0.1,
    "25 %": 0.25,
    "median": 0.5,
    "75 %": 0.75,
    "90 %": 0.9,
    "maximum": 1.0,
}


def distribution(values: Iterable[float], direction: int) -> dict[str, float]:
    """Return mean, worst tenth and quantiles of what clients reported, by name.

    Parameters
    ----------
    values
        A number a client; those that are not finite are left out.
    direction
        1 where more is better, -1 where less is, 0 where that is not known: then there is no worst tenth.

    Examples
    --------
    >>> found = distribution([0.5, 1.0, 0.9, 0.8], direction=1)
    >>> found["mean"], found["worst tenth"], found["median"]
    (0.8, 0.5, 0.85)
    """
    known = np.sort(np.array([value for value in values if math.isfinite(value)], dtype=np.float64))
    if not len(known):
        return {}
    worst = len(known[: -(-len(known) // 10)])
    tail = known[:worst] if direction > 0 else known[-worst:]
    points = np.quantile(known, list(QUANTILES.values()))
    return {
        "mean": float(known.mean()),
        **({WORST: float(tail.mean())} if direction else {}),
        **dict(zip(QUANTILES, map(float, points), strict=True)),
    }


def distributions(
    clients: Mapping[str, Mapping[str, float]], directions: Mapping[str, int]
) -> dict[str, dict[str, float]]:
    """Return the rows of a table: "mean", "worst tenth", ... to metric to value; ``directions`` has the metrics."""
    rows: dict[str, dict[str, float]] = {}
    for name, direction in directions.items():
        reported = (metrics[name] for metrics in clients.values() if name in metrics)
        for row, value in distribution(reported, direction).items():
            rows.setdefault(row, {})[name] = value
    order = ["mean", WORST, *QUANTILES]
    return {row: rows[row] for row in order if row in rows}


def worst_first(clients: Mapping[str, Mapping[str, float]], name: str, direction: int) -> list[str]:
    """Return names of clients by a metric, the worst first; clients without it are left out, ties are in name order."""
    known = [client for client, metrics in clients.items() if math.isfinite(metrics.get(name, math.nan))]
    sign = direction or 1
    return sorted(known, key=lambda client: (sign * clients[client][name], natural_key(client)))


def in_order(names: Sequence[str]) -> list[str]:
    """Return names of clients in the order in which they are read: ``shard-2`` before ``shard-10``."""
    return sorted(names, key=natural_key)


def natural_key(name: str) -> list[tuple[int, str]]:
    """Return a key by which numbers within names are sorted as numbers."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
