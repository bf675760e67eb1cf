"""The table of a comparison: a row for each variant and value of the grid's options."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedlab.comparison import data_sets, statistics

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = [
    *("strategy", "metric", "n", "mean", "low", "high"),
    *("difference", "difference_low", "difference_high", "p", "p_holm", "effect"),
    *("data_sets", "wins", "p_wilcoxon", "p_wilcoxon_holm", "wilcoxon_method", "closed", "rank"),
    *("rounds", "bytes", "seconds", "reached", "reach_rounds", "reach_bytes", "reach_seconds"),
]


@dataclass(frozen=True)
class Scores:
    """The scores of a comparison's finished cells, see :class:`fedlab.comparison.result.Comparison`.

    Attributes
    ----------
    keys
        Columns that tell rows apart: ``label``, then the grid's options.
    final, curves
        Scores by client after the last round; means over clients by round, and which of them are ``complete``.
    metrics
        Label to the metric by which its cells are judged.
    direction
        1 where more is better, -1 where less is, 0 where that is not known.
    """

    keys: Sequence[str]
    final: pd.DataFrame
    curves: pd.DataFrame
    metrics: Mapping[str, str]
    baseline: str
    upper_bound: str
    target: float | None
    direction: int


def summarize(scores: Scores) -> pd.DataFrame:
    """Return the table that :meth:`fedlab.comparison.result.Comparison.summary` describes."""
    import pandas as pd

    curves, keys = scores.curves, list(scores.keys)
    parts = {_key(key): part for key, part in curves.groupby(keys, sort=False)} if len(curves) else {}
    last = {key: part[part["round"] == part.groupby("seed")["round"].transform("max")] for key, part in parts.items()}
    rows = []
    for key, part in last.items():
        mean = statistics.interval(part["score"])
        row: dict[str, Any] = {
            **dict(zip(keys, key, strict=True)),
            "strategy": part["strategy"].iloc[0],
            "metric": scores.metrics[key[0]],
            "n": mean.n,
            "mean": mean.mean,
            "low": mean.low,
            "high": mean.high,
            **_vs_baseline(key, last, scores),
            **{name: float(part[column].mean()) for name, column in _COSTS.items()},
            **_cost_to_target(parts[key], scores.target, scores.direction),
        }
        rows.append(row)
    for name in ("p", "p_wilcoxon"):
        for row, p in zip(rows, statistics.holm([row[name] for row in rows]), strict=True):
            row[f"{name}_holm"] = p
    for row, rank in zip(rows, _ranks(scores, list(last)), strict=True):
        row["rank"] = rank
    return pd.DataFrame(rows, columns=[*keys, *COLUMNS])


_COSTS = {"rounds": "round", "bytes": "bytes", "seconds": "seconds"}


def _key(key: Any) -> tuple[str, ...]:
    return key if isinstance(key, tuple) else (key,)


def _vs_baseline(key: tuple[str, ...], keys: Iterable[tuple[str, ...]], scores: Scores) -> dict[str, Any]:
    """Return the difference to the baseline, its tests, and the fraction of the gap above that it closes."""
    names = ("difference", "difference_low", "difference_high", "p", "effect", "closed")
    found: dict[str, Any] = dict.fromkeys([*names, "data_sets", "wins", "p_wilcoxon"], math.nan)
    found["wilcoxon_method"] = ""
    base = _matching_row(key, keys, scores.baseline)
    if key[0] == scores.baseline or base is None:
        return found
    pair = statistics.paired(*_paired_scores(scores, key, base))
    apart = pair.difference
    found |= {"difference": apart.mean, "difference_low": apart.low, "difference_high": apart.high}
    found |= {"p": pair.p, "effect": pair.effect, **_over_data_sets(key, base, scores)}
    bound = _matching_row(key, keys, scores.upper_bound)
    if bound is not None:
        sign, three = scores.direction, _common_places(scores, [key, base, bound])  # one set, or it is no fraction
        own, upper, lower = (sign * _seed_means(scores, row, three) for row in (key, bound, base))
        gap = statistics.paired(upper, lower).difference
        found["closed"] = statistics.closed(statistics.paired(own, lower).difference.mean, gap)
    return found


def _over_data_sets(key: tuple[str, ...], base: tuple[str, ...], scores: Scores) -> dict[str, Any]:
    """Return on how many data sets a row beats the baseline, of how many, and the test; nothing for a single one."""
    both = _common_places(scores, [key, base])
    first, second = (data_sets.mean_by_data_set(_places(scores, row), both) for row in (key, base))
    if len(first) < 2 or not scores.direction:
        return {}
    found = data_sets.signed_rank(list(first.values()), list(second.values()), scores.direction)
    counts = {"data_sets": float(found.n), "wins": float(found.wins)}
    return {**counts, "p_wilcoxon": found.p, "wilcoxon_method": found.method}


def rank_rows(scores: Scores, keys: Sequence[tuple[str, ...]]) -> data_sets.CriticalDifference | None:
    """Return the critical difference of some rows over the data sets and seeds that all of them have.

    None without a known direction, with fewer than three rows or data sets, or where rows have different data sets.
    """
    measured = {frozenset(name for name, _ in _places(scores, key)) for key in keys}
    if not scores.direction or len(measured) != 1:
        return None
    places = _common_places(scores, keys)
    means = [data_sets.mean_by_data_set(_places(scores, key), places) for key in keys]
    table = np.array([list(row.values()) for row in means], dtype=float)
    return data_sets.critical_difference(scores.direction * table)


def _common_places(scores: Scores, keys: Sequence[tuple[str, ...]]) -> list[tuple[str, int]]:
    """Return the pairs of client and seed on which all rows were measured."""
    first, *others = (_places(scores, key) for key in keys)
    return [
        place
        for place, score in first.items()
        if not math.isnan(score + sum(other.get(place, math.nan) for other in others))
    ]


def _matching_row(key: tuple[str, ...], keys: Iterable[tuple[str, ...]], label: str) -> tuple[str, ...] | None:
    """Return the row of a label with the same values of all options that have an effect on it."""
    return next(
        (
            other
            for other in keys
            if other[0] == label and all(a == b or not b for a, b in zip(key[1:], other[1:], strict=True))
        ),
        None,
    )


def _paired_scores(
    scores: Scores, one: tuple[str, ...], other: tuple[str, ...]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return mean scores (seeds,) of two rows over the seeds, and in each over the clients, that both have."""
    both = _common_places(scores, [one, other])
    return _seed_means(scores, one, both), _seed_means(scores, other, both)


def _seed_means(scores: Scores, key: tuple[str, ...], places: Sequence[tuple[str, int]]) -> np.ndarray[Any, Any]:
    """Return a row's mean scores (seeds,) over the clients of each seed, over the given places alone."""
    row, seeds = _places(scores, key), dict.fromkeys(seed for _, seed in places)
    return np.array([np.mean([row[place] for place in places if place[1] == seed]) for seed in seeds])


def common_means(scores: Scores, keys: Sequence[tuple[str, ...]]) -> list[float]:
    """Return the mean of each row over the seeds, and in each over the clients, that all of them have; or NaN."""
    places = _common_places(scores, keys) if keys else []
    return [float(_seed_means(scores, key, places).mean()) if places else math.nan for key in keys]


def _places(scores: Scores, key: tuple[str, ...]) -> dict[tuple[str, int], float]:
    """Return client and seed to the score of a row after the last round."""
    final = scores.final
    rows = np.logical_and.reduce([final[name] == value for name, value in zip(scores.keys, key, strict=True)])
    return {(row[0], row[1]): row[2] for row in final.loc[rows, ["client", "seed", "score"]].itertuples(index=False)}


def _ranks(scores: Scores, keys: list[tuple[str, ...]]) -> list[float]:
    """Return the mean rank over clients and seeds among rows with the same clients; NaN without a known direction."""
    sign = scores.direction
    if not sign or not keys:
        return [math.nan] * len(keys)
    columns = [*scores.keys, "client", "seed", "score"]
    rows_of = scores.final[columns].dropna(subset=["score"]).itertuples(index=False, name=None)
    known = {tuple(row[:-1]): row[-1] for row in rows_of}
    met: dict[tuple[str, ...], set[str]] = {key: set() for key in keys}
    for place in known:
        met[place[:-2]].add(place[-2])
    clients = {key: frozenset(names) for key, names in met.items()}
    found = dict.fromkeys(keys, math.nan)
    for group in dict.fromkeys(clients.values()):
        rows = [key for key in keys if clients[key] == group]
        blocks = list(dict.fromkeys(place[-2:] for place in known if place[-2] in group))
        table = np.array([[known.get((*key, *block), math.nan) for block in blocks] for key in rows], dtype=float)
        found |= zip(rows, map(float, statistics.ranks(sign * table)), strict=True)
    return list(found.values())


def _cost_to_target(part: pd.DataFrame, target: float | None, way: int) -> dict[str, float]:
    """Return rounds, bytes and seconds until the mean over clients is at the target; NaN without a known direction.

    Rounds in which a client was not there are left out: the mean over the others may be at the target without it.
    """
    nothing = {"reached": math.nan, **{f"reach_{name}": math.nan for name in _COSTS}}
    if target is None or not way:
        return nothing
    found = []
    for _, curve in part.groupby("seed"):
        curve = curve[curve["complete"].astype(bool)]
        at = statistics.first_reach(curve["score"], target, way)
        if at is not None:
            found.append([float(curve[column].iloc[at]) for column in _COSTS.values()])
    if len(found) < part["seed"].nunique():
        return {**nothing, "reached": float(len(found))}
    means = np.mean(found, axis=0)
    return {
        "reached": float(len(found)),
        **{f"reach_{name}": float(value) for name, value in zip(_COSTS, means, strict=True)},
    }
