"""The one rule for what is bold in the tables of a comparison.

Bold is the best of the values that may be compared: those of one column, of variants with the same clients and seeds,
without those that learn from clients' labels. What is written in the same way is equal, and alone nothing is best; see
:meth:`fedlab.runs.metrics.MetricTable.best_as_shown`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedlab.comparison import coverage

if TYPE_CHECKING:
    import pandas as pd

    from fedlab.comparison.result import Comparison


def best_means(comparison: Comparison, table: pd.DataFrame) -> set[str]:
    """Return the best mean of a summary as it is written; nothing where rows have different clients or seeds."""
    if not coverage.rivals_have_the_same(comparison):
        return set()
    return comparison.metric_table.best_as_shown(comparison.metric, _rivals(comparison, table)["mean"].tolist())


def best_by_client(comparison: Comparison, table: pd.DataFrame) -> dict[str, set[str]]:
    """Return the best mean of each client, or row of the distribution, of a breakdown as it is written.

    Nothing of a client whose rows have different seeds, nor of distributions over different clients or seeds.
    """
    metrics, metric = comparison.metric_table, comparison.metric
    if comparison.has_many_clients and not coverage.rivals_have_the_same(comparison):
        return {str(client): set() for client in table["client"]}
    seeds = coverage.seeds_by_client(coverage.rivals(comparison).values())
    parts = _rivals(comparison, table).groupby("client", sort=False)["mean"]
    best = {
        str(client): metrics.best_as_shown(metric, means.tolist())
        for client, means in parts
        if len(seeds.get(str(client), ())) < 2
    }
    return {str(client): best.get(str(client), set()) for client in table["client"]}


def _rivals(comparison: Comparison, table: pd.DataFrame) -> pd.DataFrame:
    return table[~table["label"].isin(comparison.uses_labels)]
