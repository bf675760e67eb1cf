"""Clients and seeds that each row of a comparison's tables is a mean over: those with a score after the last round.

A cell may have failed, and a client may have been refused, left out or away. A mean without a hard client or a hard
seed is a larger number and no better result, so rows with different ones are not compared by their means.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from fedlab.comparison.columns import row_name
from fedlab.errors import name_list

if TYPE_CHECKING:
    from fedlab.comparison.result import Comparison

Key = tuple[str, ...]  # of a row: label, values of the grid's options
Places = frozenset[tuple[str, int]]  # client and seed


def places(comparison: Comparison) -> dict[Key, Places]:
    """Return each row's clients and seeds with a score; a row without any is not there."""
    final = comparison.final
    if final.empty:
        return {}
    scored = final.dropna(subset=["score"])[[*comparison.keys, "client", "seed"]]
    found: dict[Key, set[tuple[str, int]]] = {}
    for row in scored.itertuples(index=False, name=None):
        found.setdefault(tuple(map(str, row[:-2])), set()).add((str(row[-2]), int(row[-1])))
    return {key: frozenset(of) for key, of in found.items()}


def rivals_have_the_same(comparison: Comparison) -> bool:
    """Return True if all rows that may be compared by their means have the same clients and seeds."""
    return len(set(rivals(comparison).values())) < 2


def rivals_have_different_clients(comparison: Comparison) -> bool:
    """Return True if such rows have different clients, whatever their seeds."""
    return len({frozenset(client for client, _ in of) for of in rivals(comparison).values()}) > 1


def rivals(comparison: Comparison) -> dict[Key, Places]:
    """Return :func:`places` of the rows that do not learn from clients' labels."""
    return {key: of for key, of in places(comparison).items() if key[0] not in comparison.uses_labels}


def seeds_by_client(found: Iterable[Places]) -> dict[str, set[frozenset[int]]]:
    """Return each client's sets of seeds, one where all rows that have the client have it with the same seeds."""
    sets: dict[str, set[frozenset[int]]] = {}
    for of in found:
        seeds: dict[str, set[int]] = {}
        for client, seed in of:
            seeds.setdefault(client, set()).add(seed)
        for client, its in seeds.items():
            sets.setdefault(client, set()).add(frozenset(its))
    return sets


def notes(comparison: Comparison) -> list[str]:
    """Return a sentence for each row that is a mean over fewer seeds than were asked for, or lacks others' clients.

    Rows with other values of the grid's options may have other clients: that is what the options are for.
    """
    found, sentences = places(comparison), []
    for key, of in found.items():
        name, seeds = row_name(comparison, key), {seed for _, seed in of}
        if len(seeds) < len(comparison.seeds):
            sentences.append(f"{name} is a mean over {len(seeds)} of {len(comparison.seeds)} seeds.")
        lacking = _lacking(of, seeds, [other for row, other in found.items() if row[1:] == key[1:]])
        if lacking:
            clients = [f"{client} (seed {', '.join(map(str, sorted(at)))})" for client, at in lacking.items()]
            sentences.append(f"{name} has no score of {name_list(clients)}, which another row has.")
    return sentences


def _lacking(of: Places, seeds: set[int], others: Iterable[Places]) -> Mapping[str, set[int]]:
    """Return the clients that other rows have with one of these seeds, and those seeds."""
    lacking: dict[str, set[int]] = {}
    for client, seed in sorted({place for other in others for place in other} - of):
        if seed in seeds:
            lacking.setdefault(client, set()).add(seed)
    return lacking
