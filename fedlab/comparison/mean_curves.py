"""Means over clients by round, and which of them are over all clients that a run tests.

A client that joins late, or was lost for some rounds, is missing from the means of those rounds: they are other means,
and without a hard client larger ones.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

COSTS = ("bytes", "seconds")


def mean_curves(frame: pd.DataFrame, keys: Sequence[str], sampled: Set[tuple[object, ...]]) -> pd.DataFrame:
    """Return one row a cell and round: the plain mean over clients as ``score``, and what the run cost until then.

    ``complete`` is True where the mean is over every client that the cell tested in any round.

    Parameters
    ----------
    frame
        A row a cell, round and client, see :attr:`fedlab.comparison.result.Comparison.frame`.
    keys
        Columns that tell cells apart, ``seed`` among them.
    sampled
        The cells whose tests are of samples of the clients, by their keys: a mean is complete there if it is over as
        many clients as any of the cell's.
    """
    import pandas as pd

    columns = [*keys, "strategy", "round"]
    if frame.empty:
        return pd.DataFrame(columns=[*columns, "score", *COSTS, "complete"])
    curves = frame.groupby(columns, sort=False, as_index=False).agg({"score": "mean", **dict.fromkeys(COSTS, "max")})
    scored = frame.dropna(subset=["score"])[[*keys, "round", "client"]]
    tested: dict[tuple[object, ...], dict[int, set[str]]] = {}
    for *cell, at, client in scored.itertuples(index=False, name=None):
        tested.setdefault(tuple(cell), {}).setdefault(at, set()).add(client)

    def is_complete(cell: tuple[object, ...], at: int) -> bool:
        rounds = tested.get(cell, {})
        if at not in rounds:
            return False
        if cell in sampled:
            return len(rounds[at]) == max(map(len, rounds.values()))
        return len(rounds[at]) == len(set.union(*rounds.values()))

    places = curves[[*keys, "round"]].itertuples(index=False, name=None)
    return curves.assign(complete=[is_complete(tuple(cell), at) for *cell, at in places])
