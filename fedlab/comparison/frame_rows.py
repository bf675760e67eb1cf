"""Rows of a comparison's frame, from the rounds of one run: costs are cumulated, tests and scores left out of time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from fedlab.runs.metrics import MetricTable
from fedlab.runs.result import Result

SERVER = "global model"  # in the clients' place where a metric is of the server's score


def by_client(result: Result, group: str, judged: str) -> Iterator[dict[str, Any]]:
    """Yield a row a round and client.

    Parameters
    ----------
    group
        Group of the compared metrics.
    judged
        The metric of the group by which the run is judged; a client without it has the best that it reports as score.
    """
    table, seconds, moved_by_all = result.metric_table, 0.0, 0
    moved: dict[str, dict[str, int]] = {}
    for record in result.rounds:
        seconds += _training_seconds(record, table)
        for client, counts in record["bytes"].items():
            total = moved.setdefault(client, {"bytes_down": 0, "bytes_up": 0})
            total["bytes_down"] += counts["train_down"]
            total["bytes_up"] += counts["train_up"]
            moved_by_all += counts["train_down"] + counts["train_up"]
        costs = {"bytes": moved_by_all, "seconds": round(seconds, 4)}
        for client in dict.fromkeys((*record["bytes"], *record["clients"])):
            metrics = record["clients"].get(client, {})
            place = {"round": record["round"], "client": client, "score": _score(metrics, group, judged, table)}
            yield {**place, **metrics, **place, **moved.get(client, {"bytes_down": 0, "bytes_up": 0}), **costs}


def _score(metrics: Mapping[str, float], group: str, judged: str, table: MetricTable) -> float:
    """Return the metric by which a client is judged, or the best informed one that it reports of the group."""
    if judged in metrics:
        return metrics[judged]
    return metrics.get(table.primary_metric([name for name in metrics if table.group(name) == group]), math.nan)


def of_server(result: Result, metric: str) -> Iterator[dict[str, Any]]:
    """Yield a row a round that has a score, for a metric of the server's score."""
    down = up = 0
    seconds = 0.0
    for record in result.rounds:
        seconds += _training_seconds(record, result.metric_table)
        down += sum(counts["train_down"] for counts in record["bytes"].values())
        up += sum(counts["train_up"] for counts in record["bytes"].values())
        metrics = {**record["server"], **record.get("score", {})}
        if metric in metrics or record.get("score"):  # a score may lack it: few valid molecules, say
            place = {"round": record["round"], "client": SERVER, "score": metrics.get(metric, math.nan)}
            costs = {"bytes": down + up, "seconds": round(seconds, 4)}
            yield {**place, **metrics, **place, "bytes_down": down, "bytes_up": up, **costs}


def _training_seconds(record: Mapping[str, Any], table: MetricTable) -> float:
    return float(sum(value for phase, value in record["seconds"].items() if phase not in table.evaluation_phases))
