"""Partitioners: one data set split over clients, five pure functions of one signature and the table ``PARTITIONS``.

A client for each natural domain needs no function: that is what a workload does with one client per domain.

**Source**: ``shards`` is the pathological non-IID split of McMahan et al., Communication-Efficient Learning of Deep
Networks from Decentralized Data, AISTATS 2017, section 3; ``dirichlet`` that of Hsu, Qi and Brown, Measuring the
Effects of Non-Identical Data Distribution, 2019, section 3, a draw for each class as in Yurochkin et al., ICML 2019;
``balanced_dirichlet`` the draw for each client of Hsu et al., with equal sizes, as in Acar et al., FedDyn, ICLR 2021;
``quantity`` the quantity skew of Li et al., Federated Learning on Non-IID Data Silos, ICDE 2022, section 4.3.

**Departures**: (1) Flower Datasets' partitioners are not used: they take Hugging Face data sets, ours are tensors.
(2) ``dirichlet`` draws again until every client has ``min_examples``, at most 100 times. Among hundreds of clients no
draw does: ``balanced_dirichlet`` is for them. (3) ``quantity`` gives every client ``min_examples`` and divides the
others by the draw. (4) Hsu et al. fill one client after another and FedDyn one example after another; here all clients
draw at once, and those that want more of a class than is left share what is left at random and draw again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedlab.errors import ConfigError, plural, suggest
from fedlab.seeds import seed_of

MIN_EXAMPLES = 10  # fewest training examples of a client where nothing else is asked for
MIN_TEST_EXAMPLES = 10  # with fewer test examples a client, clients share them
MAX_DRAWS = 100
SHARDS_PER_CLIENT = 2  # sorted pieces that a client of ``shards`` gets, as published

Rows = npt.NDArray[np.int64]
Split = Callable[[Tensor, int, float, int, int], list[Tensor]]


def iid(labels: Tensor, clients: int, alpha: float, seed: int, min_examples: int = MIN_EXAMPLES) -> list[Tensor]:
    """Return a random split of examples into parts of nearly equal size, indices (examples of the client,) each.

    ``alpha`` and the values of ``labels`` (examples,) are not used.

    Parameters and errors are those of :func:`partition_indices`.
    """
    _check_count(len(labels), clients, min_examples)
    return _sorted(np.array_split(_generator(seed, "even shards", clients).permutation(len(labels)), clients))


def dirichlet(labels: Tensor, clients: int, alpha: float, seed: int, min_examples: int = MIN_EXAMPLES) -> list[Tensor]:
    """Return a split of each class by a draw from Dirichlet(alpha).

    A small alpha gives skewed labels and sizes, ``inf`` equal fractions. Parameters are those of
    :func:`partition_indices`.

    Raises
    ------
    ConfigError
        When some client would get too few examples.
    """
    _check_count(len(labels), clients, min_examples)
    generator = _generator(seed, "dirichlet", clients)
    classes = [np.flatnonzero(labels.numpy() == label) for label in torch.unique(labels).tolist()]
    even = np.isinf(alpha)  # then every draw has the same sizes
    for _ in range(1 if even else MAX_DRAWS):
        dealt = []
        for rows in classes:
            fractions = _fractions(generator, clients, alpha)
            dealt.append(_cut(generator.permutation(rows), fractions))
        parts = [np.concatenate(pieces) for pieces in zip(*dealt, strict=True)]
        if min(map(len, parts)) >= min_examples:
            return _sorted(parts)
    if even:
        raise ConfigError(
            f"{plural(len(labels), 'example')}, each class divided evenly over {plural(clients, 'client')}, leave a "
            "client with fewer than "
            f"{min_examples}; ask for fewer clients"
        )
    raise ConfigError(
        f"no split of {plural(len(labels), 'example')} over {plural(clients, 'client')} with alpha={alpha:g} gave "
        "every client "
        f"{plural(min_examples, 'example')} in {MAX_DRAWS} draws; raise alpha, ask for fewer clients, lower "
        "data.min_examples, "
        "or take data.partition=balanced_dirichlet, whose clients are of equal size"
    )


def balanced_dirichlet(
    labels: Tensor, clients: int, alpha: float, seed: int, min_examples: int = MIN_EXAMPLES
) -> list[Tensor]:
    """Return a split into parts of nearly equal size, the classes of each by a draw of its own.

    A client's class proportions are drawn from Dirichlet(alpha * classes * p), where p are the proportions of the whole
    set: with classes of equal size, from Dirichlet(alpha) as in ``dirichlet``. Works for any number of clients.
    Parameters and errors are those of :func:`partition_indices`.
    """
    _check_count(len(labels), clients, min_examples)
    generator = _generator(seed, "balanced dirichlet", clients)
    values, counts = np.unique(labels.numpy(), return_counts=True)
    prior = counts / counts.sum()
    if np.isinf(alpha):
        wanted = np.tile(prior, (clients, 1))
    else:
        wanted = generator.dirichlet(alpha * len(values) * prior, clients)  # (clients, classes)
    sizes = len(labels) // clients + (generator.permutation(clients) < len(labels) % clients)
    granted = _grant(generator, wanted, sizes, counts)
    parts = [
        np.split(generator.permutation(np.flatnonzero(labels.numpy() == value)), np.cumsum(granted[:-1, column]))
        for column, value in enumerate(values)
    ]
    return _sorted([np.concatenate(pieces) for pieces in zip(*parts, strict=True)])


def _grant(generator: np.random.Generator, wanted: npt.NDArray[np.float64], sizes: Rows, left: Rows) -> Rows:
    """Return how many examples of each class each client gets, (clients, classes).

    Every pass draws what clients still need by their proportions ``wanted`` (clients, classes); where a class has fewer
    examples ``left`` than are asked for, those who get one are drawn. Each pass but the last empties a class.
    """
    granted = np.zeros(wanted.shape, dtype=np.int64)
    left = left.copy()
    while (need := sizes - granted.sum(1)).any():
        open_classes = np.where(left > 0, wanted, 0.0)
        total = open_classes.sum(1, keepdims=True)
        fallback = left / left.sum()  # of a client whose classes are all gone
        chances = np.where(total > 0, open_classes / np.where(total > 0, total, 1.0), fallback)
        demand = generator.multinomial(need, chances)
        for column in np.flatnonzero(demand.sum(0) > left):
            demand[:, column] = generator.multivariate_hypergeometric(demand[:, column], left[column])
        granted += demand
        left -= demand.sum(0)
    return granted


def shards(labels: Tensor, clients: int, alpha: float, seed: int, min_examples: int = MIN_EXAMPLES) -> list[Tensor]:
    """Return a split of the examples sorted by label, in two random contiguous pieces a client.

    ``labels`` are (examples,), the parts indices (examples of the client,). Each client has few classes,
    and sizes are nearly even. Parameters and errors are those of :func:`partition_indices`.
    """
    smallest = len(labels) // (clients * SHARDS_PER_CLIENT) * SHARDS_PER_CLIENT  # two of the smaller pieces
    _check_count(len(labels), clients, min_examples, smallest)
    pieces = np.array_split(np.argsort(labels.numpy(), kind="stable"), clients * SHARDS_PER_CLIENT)
    dealt = _generator(seed, "shards", clients).permutation(len(pieces)).reshape(clients, SHARDS_PER_CLIENT)
    return _sorted([np.concatenate([pieces[number] for number in hand]) for hand in dealt])


def quantity(labels: Tensor, clients: int, alpha: float, seed: int, min_examples: int = MIN_EXAMPLES) -> list[Tensor]:
    """Return a random split: ``min_examples`` for every client, and the others in fractions from Dirichlet(alpha).

    With a small alpha few clients have nearly all examples, with ``inf`` sizes are even. Parameters and errors are
    those of :func:`partition_indices`.
    """
    _check_count(len(labels), clients, min_examples)
    generator = _generator(seed, "quantity", clients)
    fractions = _fractions(generator, clients, alpha)
    order = generator.permutation(len(labels))
    floor = clients * min_examples
    both = zip(np.split(order[:floor], clients), _cut(order[floor:], fractions), strict=True)
    return _sorted([np.concatenate(pieces) for pieces in both])


@dataclass(frozen=True)
class Partition:
    """One line of the table.

    ``by_label`` is true where the values of the labels matter, not only their number, ``draws`` where alpha does.
    """

    description: str
    split: Split
    by_label: bool
    draws: bool


PARTITIONS: Mapping[str, Partition] = {
    "iid": Partition("at random, evenly", iid, by_label=False, draws=False),
    "dirichlet": Partition("each class by a draw from Dirichlet(alpha)", dirichlet, by_label=True, draws=True),
    "balanced_dirichlet": Partition(
        "equal sizes, each client's classes by a draw from Dirichlet(alpha)",
        balanced_dirichlet,
        by_label=True,
        draws=True,
    ),
    "shards": Partition("sorted by label, two pieces a client", shards, by_label=True, draws=False),
    "quantity": Partition("at random, sizes by a draw from Dirichlet(alpha)", quantity, by_label=False, draws=True),
}


def partition_indices(
    kind: str, labels: Tensor, clients: int, alpha: float, seed: int, min_examples: int = MIN_EXAMPLES
) -> list[Tensor]:
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
        The split is a function of the seed, of the number of clients, of the labels and of ``min_examples``.
    min_examples
        Fewest examples of a client.

    Returns
    -------
    list of Tensor
        Row numbers (rows,), disjoint and together all rows, each sorted and with at least ``min_examples`` of them.

    Raises
    ------
    ConfigError
        For an unknown kind, too few examples, or when none of 100 draws gives every client enough.
    """
    if kind not in PARTITIONS:
        raise ConfigError(f"no partition {kind!r}; {suggest(kind, PARTITIONS)}")
    return PARTITIONS[kind].split(labels, clients, alpha, seed, min_examples)


def held_out_indices(kind: str, labels: Tensor, clients: int, seed: int) -> list[Tensor]:
    """Return the row numbers of the test examples of each client.

    Clients divide the test examples evenly. Where that would leave a client fewer than 10, each gets 10 (or all there
    are), and several clients test on the same example, every example equally often.

    Parameters
    ----------
    kind
        A key of ``PARTITIONS``, drawn with an alpha of ``inf``: ``iid``, or ``dirichlet`` for the same classes each.
    labels
        Integers (examples,).
    clients
        Number of clients.
    seed
        As in :func:`partition_indices`.

    Returns
    -------
    list of Tensor
        Row numbers (rows,), each sorted and without duplicates, none of them empty.
    """
    if len(labels) >= clients * MIN_TEST_EXAMPLES:
        return partition_indices(kind, labels, clients, float("inf"), seed, 1)
    size = min(MIN_TEST_EXAMPLES, len(labels))
    order = _generator(seed, "shared tests", clients).permutation(len(labels))
    rows = order[(np.arange(clients)[:, None] * size + np.arange(size)) % len(labels)]
    return list(torch.from_numpy(np.sort(rows, 1)))


def matching_indices(labels: Tensor, own: Sequence[Tensor], seed: int) -> list[Tensor]:
    """Return the row numbers of the test examples of each client, with the classes of its training examples.

    Clients test on equally many examples, at least 10. The number of each class is the client's proportion of it,
    rounded; classes are gone through in a random order, again and again, so examples of one class are used equally
    often. Clients may test on the same example.

    Parameters
    ----------
    labels
        Integers (examples,) of the test examples.
    own
        Labels of each client's training examples.
    seed
        As in :func:`partition_indices`.

    Returns
    -------
    list of Tensor
        Row numbers (rows,), each sorted and without duplicates. A client gets fewer where a class has fewer examples.

    Raises
    ------
    ConfigError
        When no test example has a class of some client.
    """
    generator = _generator(seed, "tests of the own classes", len(own))
    size = min(max(MIN_TEST_EXAMPLES, len(labels) // len(own)), len(labels))
    rows = {
        label: generator.permutation(np.flatnonzero(labels.numpy() == label)) for label in torch.unique(labels).tolist()
    }
    used, parts = dict.fromkeys(rows, 0), []
    for number, mine in enumerate(own):
        taken = []
        for label, count in _quotas(mine, size).items():
            there = rows.get(label, np.empty(0, dtype=np.int64))
            count = min(count, len(there))
            taken.append(there[(used.get(label, 0) + np.arange(count)) % max(len(there), 1)])
            used[label] = used.get(label, 0) + count
        if not sum(map(len, taken)):
            raise ConfigError(
                f"no test example has a class of client {number}'s training examples; set data.test_classes=even"
            )
        parts.append(np.concatenate(taken))
    return _sorted(parts)


def _quotas(labels: Tensor, size: int) -> dict[int, int]:
    """Return how many of ``size`` examples each class of labels (examples,) gets, rounded by largest remainder."""
    values, counts = torch.unique(labels, return_counts=True)
    exact = counts.numpy() * size / len(labels)
    whole = np.floor(exact).astype(int)
    whole[np.argsort(whole - exact, kind="stable")[: size - whole.sum()]] += 1
    return dict(zip(values.tolist(), whole.tolist(), strict=True))


def _generator(seed: int, kind: str, clients: int) -> np.random.Generator:
    return np.random.default_rng(seed_of(seed, kind, clients))


def _fractions(generator: np.random.Generator, clients: int, alpha: float) -> npt.NDArray[np.float64]:
    return np.full(clients, 1 / clients) if np.isinf(alpha) else generator.dirichlet(np.full(clients, alpha))


def _cut(rows: Rows, fractions: npt.NDArray[np.float64]) -> list[Rows]:
    """Cut rows, in order, into pieces of these fractions."""
    return np.split(rows, np.rint(np.cumsum(fractions)[:-1] * len(rows)).astype(int))


def _sorted(parts: list[Rows]) -> list[Tensor]:
    return [torch.from_numpy(np.sort(rows)) for rows in parts]


def _check_count(count: int, clients: int, min_examples: int, smallest: int | None = None) -> None:
    """Refuse a split in which a client would get fewer examples than asked for; by default parts may be even."""
    if (count // clients if smallest is None else smallest) < min_examples:
        raise ConfigError(
            f"{plural(count, 'example')} cannot be split over {plural(clients, 'client')} with at least "
            f"{min_examples} each; "
            "ask for fewer clients, or lower data.min_examples"
        )
