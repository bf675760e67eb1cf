"""Partitioners: one data set split over clients, four pure functions of one signature and the table ``PARTITIONS``.

A client for each natural domain needs no function: that is what a workload does with one client per domain.

**Source**: ``shards`` is the pathological non-IID split of McMahan et al., Communication-Efficient Learning of Deep
Networks from Decentralized Data, AISTATS 2017, section 3; ``dirichlet`` that of Hsu, Qi and Brown, Measuring the
Effects of Non-Identical Data Distribution, 2019, section 3, a draw for each class as in Yurochkin et al., ICML 2019;
``quantity`` the quantity skew of Li et al., Federated Learning on Non-IID Data Silos, ICDE 2022, section 4.3.

**Departures**: (1) Flower Datasets' partitioners are not used: they take Hugging Face data sets, ours are tensors.
(2) ``dirichlet`` and ``quantity`` draw again until every client has 10 examples, at most 100 times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedlab.errors import ConfigError, suggest
from fedlab.seeds import seed_of

MIN_EXAMPLES = 10  # a client with fewer cannot train or be tested
MAX_DRAWS = 100
SHARDS_PER_CLIENT = 2  # sorted pieces that a client of ``shards`` gets, as published

Rows = npt.NDArray[np.int64]


def iid(labels: Tensor, clients: int, alpha: float, seed: int) -> list[Tensor]:
    """Return a random split of examples into parts of nearly equal size, indices (examples of the client,) each.

    ``alpha`` and the values of ``labels`` (examples,) are not used.

    Parameters and errors are those of :func:`partition_indices`.
    """
    _check_count(len(labels), clients)
    return _sorted(np.array_split(_generator(seed, "even shards", clients).permutation(len(labels)), clients))


def dirichlet(labels: Tensor, clients: int, alpha: float, seed: int) -> list[Tensor]:
    """Return a split of each class by a draw from Dirichlet(alpha).

    A small alpha gives skewed labels, ``inf`` equal fractions. Parameters and errors are those of
    :func:`partition_indices`.
    """
    generator = _generator(seed, "dirichlet", clients)
    classes = [np.flatnonzero(labels.numpy() == label) for label in torch.unique(labels).tolist()]

    def draw() -> list[Rows]:
        dealt = []
        for rows in classes:
            fractions = _fractions(generator, clients, alpha)
            dealt.append(_cut(generator.permutation(rows), fractions))
        return [np.concatenate(pieces) for pieces in zip(*dealt, strict=True)]

    return _with_enough(draw, len(labels), clients, alpha)


def shards(labels: Tensor, clients: int, alpha: float, seed: int) -> list[Tensor]:
    """Return a split of the examples sorted by label, in two random contiguous pieces a client.

    ``labels`` are (examples,), the parts indices (examples of the client,). Each client has few classes,
    and sizes are nearly even. Parameters and errors are those of :func:`partition_indices`.
    """
    _check_count(len(labels), clients)
    pieces = np.array_split(np.argsort(labels.numpy(), kind="stable"), clients * SHARDS_PER_CLIENT)
    dealt = _generator(seed, "shards", clients).permutation(len(pieces)).reshape(clients, SHARDS_PER_CLIENT)
    return _sorted([np.concatenate([pieces[number] for number in hand]) for hand in dealt])


def quantity(labels: Tensor, clients: int, alpha: float, seed: int) -> list[Tensor]:
    """Return a random split whose sizes are drawn from Dirichlet(alpha).

    With a small alpha few clients have nearly all examples, with ``inf`` sizes are even. Parameters and errors are
    those of :func:`partition_indices`.
    """
    generator = _generator(seed, "quantity", clients)

    def draw() -> list[Rows]:
        fractions = _fractions(generator, clients, alpha)
        return _cut(generator.permutation(len(labels)), fractions)

    return _with_enough(draw, len(labels), clients, alpha)


@dataclass(frozen=True)
class Partition:
    """One line of the table; ``by_label`` is true where the values of the labels matter, not only their number."""

    description: str
    split: Callable[[Tensor, int, float, int], list[Tensor]]
    by_label: bool


PARTITIONS: Mapping[str, Partition] = {
    "iid": Partition("at random, evenly", iid, by_label=False),
    "dirichlet": Partition("each class by a draw from Dirichlet(alpha)", dirichlet, by_label=True),
    "shards": Partition("sorted by label, two pieces a client", shards, by_label=True),
    "quantity": Partition("at random, sizes by a draw from Dirichlet(alpha)", quantity, by_label=False),
}


def partition_indices(kind: str, labels: Tensor, clients: int, alpha: float, seed: int) -> list[Tensor]:
    """Return the row numbers of each client.

    Parameters
    ----------
    kind
        A key of ``PARTITIONS``.
    labels
        Integers (examples,); where ``by_label`` is false only their number matters.
    clients
        Number of clients, at least 1.
    alpha
        Concentration of the Dirichlet draws, above 0; ``inf`` gives equal fractions.
    seed
        The split is a function of the seed, of the number of clients and of the labels.

    Returns
    -------
    list of Tensor
        Row numbers (rows,), disjoint and together all rows, each sorted and with at least 10 of them.

    Raises
    ------
    ConfigError
        For an unknown kind, too few examples, or when none of 100 draws gives every client 10 examples.
    """
    if kind not in PARTITIONS:
        raise ConfigError(f"no partition {kind!r}; {suggest(kind, PARTITIONS)}")
    return PARTITIONS[kind].split(labels, clients, alpha, seed)


def _generator(seed: int, kind: str, clients: int) -> np.random.Generator:
    return np.random.default_rng(seed_of(seed, kind, clients))


def _fractions(generator: np.random.Generator, clients: int, alpha: float) -> npt.NDArray[np.float64]:
    return np.full(clients, 1 / clients) if np.isinf(alpha) else generator.dirichlet(np.full(clients, alpha))


def _cut(rows: Rows, fractions: npt.NDArray[np.float64]) -> list[Rows]:
    """Cut rows, in order, into pieces of these fractions."""
    return np.split(rows, np.rint(np.cumsum(fractions)[:-1] * len(rows)).astype(int))


def _with_enough(draw: Callable[[], list[Rows]], count: int, clients: int, alpha: float) -> list[Tensor]:
    _check_count(count, clients)
    for _ in range(MAX_DRAWS):
        parts = draw()
        if min(map(len, parts)) >= MIN_EXAMPLES:
            return _sorted(parts)
    raise ConfigError(
        f"no split of {count} examples over {clients} clients with alpha={alpha:g} gave every client {MIN_EXAMPLES} "
        f"examples in {MAX_DRAWS} draws; raise alpha or ask for fewer clients"
    )


def _sorted(parts: list[Rows]) -> list[Tensor]:
    return [torch.from_numpy(np.sort(rows)) for rows in parts]


def _check_count(count: int, clients: int) -> None:
    if count < clients * MIN_EXAMPLES:
        raise ConfigError(
            f"{count} examples cannot be split over {clients} clients with at least {MIN_EXAMPLES} each; "
            "ask for fewer clients"
        )
