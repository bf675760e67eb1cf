"""The one rule for what is bold in the tables of a comparison.

Bold is the best of the values that may be compared: those of one column, of variants with the same clients, without
those that learn from clients' labels. What is written in the same way is equal, and alone nothing is best; see
:meth:`fedlab.runs.metrics.MetricTable.best_as_shown`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from fedlab.comparison.result import Comparison


def client_groups(comparison: Comparison) -> set[frozenset[str]]:
    """Return the sets of clients that variants were measured on; several where the grid chooses the clients."""
    found: dict[tuple[str, ...], set[str]] = {}
    for row in comparison.final[[*comparison.keys, "client"]].drop_duplicates().itertuples(index=False, name=None):
        found.setdefault(tuple(map(str, row[:-1])), set()).add(str(row[-1]))
    return {frozenset(clients) for clients in found.values()}


def best_means(comparison: Comparison, table: pd.DataFrame) -> set[str]:
    """Return the best mean of a summary as it is written; nothing where rows have different clients."""
    if len(client_groups(comparison)) > 1:
        return set()
    return comparison.metric_table.best_as_shown(comparison.metric, _rivals(comparison, table)["mean"].tolist())


def best_by_client(comparison: Comparison, table: pd.DataFrame) -> dict[str, set[str]]:
    """Return the best mean of each client, or row of the distribution, of a breakdown as it is written."""
    metrics, metric = comparison.metric_table, comparison.metric
    parts = _rivals(comparison, table).groupby("client", sort=False)["mean"]
    best = {str(client): metrics.best_as_shown(metric, means.tolist()) for client, means in parts}
    return {str(client): best.get(str(client), set()) for client in table["client"]}


def _rivals(comparison: Comparison, table: pd.DataFrame) -> pd.DataFrame:
    return table[~table["label"].isin(comparison.uses_labels)]
