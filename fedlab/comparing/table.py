"""The table of a comparison: a row for each variant and value of the grid's knobs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from fedlab.comparing import statistics
from fedlab.results import direction

if TYPE_CHECKING:
    import pandas as pd

    from fedlab.comparing.comparison import Comparison

COLUMNS = [
    *("strategy", "metric", "n", "mean", "low", "high"),
    *("difference", "difference_low", "difference_high", "p", "p_holm", "rank"),
    *("rounds", "bytes", "seconds", "reached", "reach_rounds", "reach_bytes", "reach_seconds"),
]


def summarise(comparison: Comparison) -> pd.DataFrame:
    """See :meth:`fedlab.comparing.comparison.Comparison.summary`."""
    import pandas as pd

    curves, keys = comparison.curves, comparison.keys
    judged = {cell.label: comparison.judged_by(result) for cell, result in comparison.results}
    parts = {_key(key): part for key, part in curves.groupby(keys, sort=False)} if len(curves) else {}
    last = {key: part[part["round"] == part.groupby("seed")["round"].transform("max")] for key, part in parts.items()}
    rows = []
    for key, part in last.items():
        mean = statistics.interval(part["score"])
        row: dict[str, Any] = {
            **dict(zip(keys, key, strict=True)),
            "strategy": part["strategy"].iloc[0],
            "metric": judged[key[0]],
            "n": mean.n,
            "mean": mean.mean,
            "low": mean.low,
            "high": mean.high,
            **_against(key, last, comparison),
            **{name: float(part[column].mean()) for name, column in _COSTS.items()},
            **_reach(parts[key], comparison.target),
        }
        rows.append(row)
    for row, p in zip(rows, statistics.holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = p
    for row, rank in zip(rows, _ranks(comparison, list(last)), strict=True):
        row["rank"] = rank
    return pd.DataFrame(rows, columns=[*keys, *COLUMNS])


_COSTS = {"rounds": "round", "bytes": "bytes", "seconds": "seconds"}


def _key(key: Any) -> tuple[str, ...]:
    return key if isinstance(key, tuple) else (key,)


def _against(key: tuple[str, ...], last: dict[tuple[str, ...], pd.DataFrame], comparison: Comparison) -> dict[str, Any]:
    """Difference to the baseline with the same values of those knobs that have an effect on both."""
    nothing = dict.fromkeys(("difference", "difference_low", "difference_high", "p"), math.nan)
    rivals = [
        other
        for other in last
        if other[0] == comparison.baseline and all(a == b or not b for a, b in zip(key[1:], other[1:], strict=True))
    ]
    if key[0] == comparison.baseline or not rivals:
        return nothing
    scores = last[key].set_index("seed")["score"]
    found = statistics.paired(*_aligned(scores, last[rivals[0]].set_index("seed")["score"]))
    apart = found.difference
    return {"difference": apart.mean, "difference_low": apart.low, "difference_high": apart.high, "p": found.p}


def _aligned(one: pd.Series[float], other: pd.Series[float]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Values of the seeds that both have."""
    seeds = [seed for seed in one.index if seed in other.index]
    return one.loc[seeds].to_numpy(), other.loc[seeds].to_numpy()


def _ranks(comparison: Comparison, keys: list[tuple[str, ...]]) -> list[float]:
    """Mean rank over domains and seeds; NaN where nobody knows which way is better."""
    sign = direction(comparison.metric)
    if not sign or not keys:
        return [math.nan] * len(keys)
    blocks = comparison.final.pivot_table(
        index=comparison.keys, columns=["client", "seed"], values="score", dropna=False, sort=False
    )
    rows = [blocks.loc[key if len(key) > 1 else key[0]].to_numpy() for key in keys]
    return [float(rank) for rank in statistics.ranks(sign * np.stack(rows))]


def _reach(part: pd.DataFrame, target: float | None) -> dict[str, float]:
    """Rounds, bytes and seconds until the mean over clients is at the target."""
    nothing = {"reached": math.nan, **{f"reach_{name}": math.nan for name in _COSTS}}
    if target is None:
        return nothing
    found = []
    for _, curve in part.groupby("seed"):
        at = statistics.first_reach(curve["score"], target)
        if at is not None:
            found.append([float(curve[column].iloc[at]) for column in _COSTS.values()])
    if len(found) < part["seed"].nunique():
        return {**nothing, "reached": float(len(found))}
    means = np.mean(found, axis=0)
    return {
        "reached": float(len(found)),
        **{f"reach_{name}": float(value) for name, value in zip(_COSTS, means, strict=True)},
    }
