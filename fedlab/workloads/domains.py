"""What workloads of domains share: who owns which part of which domain, and how classes are measured.

A source domain is the server's. A target domain belongs to one client, the natural split, or to several
(``usps-0``, ``usps-1``, ...) that share its training part; **each of these tests on the domain's whole test part**, so
that figures of one domain can be compared whoever holds it, and how training data are split changes no test set.

Where a split goes by labels (``dirichlet``, ``shards``), the simulation reads a target's training labels to deal rows
and for the table of the split, and for nothing else: a client gets inputs without labels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Literal, NamedTuple

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fedlab.data.examples import Examples
from fedlab.data.partition import PARTITIONS, split
from fedlab.errors import ConfigError, DataError, near_match
from fedlab.seeds import seed_of

EVALUATION_BATCH = 500

Kind = Literal["iid", "dirichlet", "shards", "quantity"]  # the keys of PARTITIONS
Read = Callable[[str, str], Examples]  # a domain and "train" (no labels), "oracle" (the same with labels) or "test"


class Owner(NamedTuple):
    """One client: its name, its domain, and which of how many parts of the domain it trains on."""

    name: str
    domain: str
    part: int = 0
    parts: int = 1


def names_in(text: str) -> tuple[str, ...]:
    """``"usps, mnist_m"`` as names."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def owners(domains: Sequence[str], parts: int) -> list[Owner]:
    """The clients of domains, ``parts`` each."""
    return [
        Owner(f"{domain}-{part}" if parts > 1 else domain, domain, part, parts)
        for domain in domains
        for part in range(parts)
    ]


def check_known(domain: str, known: Collection[str], noun: str, otherwise: str = "") -> None:
    """Refuse a domain that does not exist.

    Raises
    ------
    ConfigError
        With the near match; ``noun`` says what kind of domain, ``otherwise`` what else to do.
    """
    if domain not in known:
        raise ConfigError(f"unknown {noun} domain {domain!r}; {near_match(domain, known)}{otherwise}")


def check_once(source: str, targets: Sequence[str], clients: Sequence[str]) -> None:
    """Refuse a domain on both sides or twice on one, and two clients of one name."""
    twice = [name for name in targets if targets.count(name) > 1 or name == source]
    if twice:
        raise ConfigError(
            f"domain {twice[0]!r} appears twice among source {source!r} and targets {', '.join(targets)!r}; each "
            "domain has one owner"
        )
    if same := [name for name in clients if clients.count(name) > 1]:
        raise ConfigError(f"two clients would be called {same[0]!r}; rename the one that brings its own images")


def check_partition(partition: int | None, clients: Sequence[str]) -> None:
    """Refuse a client that does not exist; None is the server.

    Raises
    ------
    DataError
        With the names of those that do.
    """
    if partition is not None and not 0 <= partition < len(clients):
        raise DataError(f"there is no partition {partition}; this workload has {len(clients)}: {', '.join(clients)}")


def held(read: Read, owner: Owner, labelled: bool, kind: str, alpha: float, seed: int) -> Examples:
    """What a client trains on: its part of its domain.

    Parameters
    ----------
    read
        Reads one split of a domain.
    labelled
        Whether the labels come with it: for supervised bounds, and to tell what a split is like.
    kind, alpha
        How a domain with several clients is split, see ``fedlab.data.partition``.
    seed
        The run's; every domain has a stream of its own.

    Raises
    ------
    ConfigError
        When there are too few examples for so many clients.
    """
    examples = read(owner.domain, "oracle" if labelled else "train")
    if owner.parts == 1:
        return examples
    by_label = PARTITIONS[kind].by_label
    labels = read(owner.domain, "oracle").columns["y"] if by_label else torch.zeros(len(examples))
    return examples.take(split(kind, labels, owner.parts, alpha, seed_of(seed, "split", owner.domain))[owner.part])


@torch.no_grad()
def accuracy_and_loss(model: nn.Module, data: Examples, batch: int = EVALUATION_BATCH) -> dict[str, float]:
    """``accuracy`` and ``loss``, mean cross-entropy, of a model that maps ``x`` to logits; nothing without labels."""
    if "y" not in data.columns:
        return {}
    model.eval()
    device = next(model.parameters()).device
    parts = [(model(part["x"].to(device)), part["y"].to(device)) for part in data.batches(batch)]
    logits, labels = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    return {
        "accuracy": float((logits.argmax(1) == labels).double().mean()),
        "loss": float(cross_entropy(logits, labels)),
    }
