"""A comparison's scores client by client over seeds, or of many clients their distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from fedlab.comparison import statistics
from fedlab.runs.client_distribution import distribution

if TYPE_CHECKING:
    import pandas as pd

MEASURES = ("client", "n", "mean", "low", "high")


def by_client(final: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Return a row a variant, value of the grid and client, with mean and interval over seeds.

    Parameters
    ----------
    final
        A row a cell and client, with its score after the last round.
    keys
        Columns of the variant and of the grid's options.
    """
    import pandas as pd

    rows = []
    for key, part in final.groupby([*keys, "client"], sort=False) if len(final) else ():
        found = statistics.interval(part["score"])
        rows.append({**dict(zip([*keys, "client"], key, strict=True)), **asdict(found)})
    return pd.DataFrame(rows, columns=[*keys, *MEASURES])


def by_quantile(final: pd.DataFrame, keys: Sequence[str], direction: int) -> pd.DataFrame:
    """Return the same with quantiles and the worst tenth of each seed's clients in the place of clients.

    ``direction`` is 1 where more is better, -1 where less is, 0 where that is not known.
    """
    import pandas as pd

    rows = []
    for key, part in final.groupby(list(keys), sort=False):
        by_seed = [distribution(of["score"], direction) for _, of in part.groupby("seed", sort=False)]
        for row in dict.fromkeys(row for found in by_seed for row in found if row != "mean"):
            found = statistics.interval(pd.Series([of[row] for of in by_seed if row in of], dtype=float))
            names = key if isinstance(key, tuple) else (key,)
            rows.append({**dict(zip(keys, names, strict=True)), "client": row, **asdict(found)})
    return pd.DataFrame(rows, columns=[*keys, *MEASURES])
