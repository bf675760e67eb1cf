"""What workloads of domains share: who owns which part of which domain, and how classes are measured.

A source domain is the server's. A target domain belongs to one client, the natural split, or to several
(``usps-0``, ``usps-1``, ...) that share its training part; **each of these tests on the domain's whole test part**, so
that figures of one domain can be compared whoever holds it, and how training data are split changes no test set.

Where a split goes by labels (``dirichlet``, ``shards``), the simulation reads a target's training labels to deal rows
and for the table of the split, and for nothing else: a client gets inputs without labels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedlab.config.schema import DEFAULT_DATA, DataConfig
from fedlab.data.dataset import ArrayDataset, Batch
from fedlab.data.images import domain_suites
from fedlab.data.images.domain_suites import DomainSuite
from fedlab.data.partitioners import PARTITIONS, partition_indices
from fedlab.errors import ConfigError, DataError, suggest
from fedlab.seeds import seed_of

EVALUATION_BATCH = 500

KINDS = ("dirichlet", "iid", "shards", "quantity")  # the keys of PARTITIONS, the default first
ReadDomain = Callable[[str, str, bool], ArrayDataset]  # domain, "train" or "test", whether training labels come with it


class ClientSpec(NamedTuple):
    """One client: its name, its domain, and which of how many parts of the domain it trains on."""

    name: str
    domain: str
    part: int = 0
    parts: int = 1


def split_names(text: str) -> tuple[str, ...]:
    """``"usps, mnist_m"`` as names."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def client_specs(domains: Sequence[str], parts: int) -> list[ClientSpec]:
    """The clients of domains, ``parts`` each."""
    return [
        ClientSpec(f"{domain}-{part}" if parts > 1 else domain, domain, part, parts)
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
        raise ConfigError(f"unknown {noun} domain {domain!r}; {suggest(domain, known)}{otherwise}")


def check_unique(source: str, targets: Sequence[str], clients: Sequence[str]) -> None:
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


def client_data(read: ReadDomain, owner: ClientSpec, split: str, labelled: bool, kind: str, alpha: float, seed: int) -> ArrayDataset:
    """What a client holds: its part of its domain to train on, all of the domain's test part to test.

    Parameters
    ----------
    read
        Reads one split of a domain.
    split
        "train" or "test".
    labelled
        Whether training labels come with it: for supervised bounds, and to tell what a split is like.
    kind, alpha
        How a domain with several clients is split, see ``fedlab.data.partitioners``.
    seed
        The run's; every domain has a stream of its own.

    Raises
    ------
    ConfigError
        When there are too few examples for so many clients.
    """
    examples = read(owner.domain, split, labelled)
    if owner.parts == 1 or split != "train":
        return examples
    by_label = PARTITIONS[kind].by_label
    labels = read(owner.domain, "train", True).columns["y"] if by_label else torch.zeros(len(examples))
    return examples.select(partition_indices(kind, labels, owner.parts, alpha, seed_of(seed, "split", owner.domain))[owner.part])


@dataclass(frozen=True)
class DomainSuiteWorkload:
    """A workload whose server and clients hold domains of one set, any of which may be the source.

    A subclass says which set (``of``), its usual ``source``, what the server's training examples go through
    (``view``), and the ``model``.
    """

    of: ClassVar[DomainSuite]

    source: str = Field("", description="domain of the server, with labels")
    targets: str = Field("", description="domains of the clients, comma-separated; empty: all but the source")
    client_labels: bool = Field(False, description="clients have training labels, for upper bounds only")
    augment: bool = Field(True, description="random views of the source")
    data_config: DataConfig = Field(DEFAULT_DATA, exclude=True)

    def __post_init__(self) -> None:
        """Refuse domains that do not exist or stand on both sides."""
        for domain in (self.source, *self._domains):
            check_known(domain, self.of.domains, self.of.name)
        check_unique(self.source, self._domains, self.clients)
        self.data_config.partition_kind(*KINDS)

    @staticmethod
    def view(batch: Batch) -> Batch:
        """A random view of a batch of the source as it is read."""
        raise NotImplementedError

    def model(self) -> nn.Module:
        """A fresh network with ``features`` and ``head``."""
        raise NotImplementedError

    @property
    def clients(self) -> tuple[str, ...]:
        """A client for each target, or for each of its parts."""
        return tuple(owner.name for owner in client_specs(self._domains, self.data_config.clients_per_domain))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by label."""
        return self.of.classes

    def data(self, partition: int | None, split: str) -> ArrayDataset:
        """What the server (None) or a client holds: inputs as ``x``, labels as ``y`` where the holder has them.

        The server's training examples come in a new random view each time they are read, if ``augment`` is on.
        """
        check_partition(partition, self.clients)
        if partition is not None:
            return self._client_data(partition, split, labelled=self.client_labels)
        examples = self._read(self.source, split, True)
        view = self.view if self.augment else self.of.to_float
        return ArrayDataset(examples.columns, view) if split == "train" else examples

    def labels(self, partition: int) -> Tensor:
        """See :class:`fedlab.workload.SupportsHiddenLabels`."""
        return self._client_data(partition, "train", labelled=True).columns["y"]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross-entropy."""
        return cross_entropy(model(batch["x"]), batch["y"])

    def evaluate(self, model: nn.Module, data: ArrayDataset) -> dict[str, float]:
        """Accuracy and cross-entropy."""
        return accuracy_and_loss(model, data)

    @property
    def _domains(self) -> tuple[str, ...]:
        return split_names(self.targets) or tuple(domain for domain in self.of.domains if domain != self.source)

    def _client_data(self, partition: int, split: str, labelled: bool) -> ArrayDataset:
        owner = client_specs(self._domains, self.data_config.clients_per_domain)[partition]
        return client_data(self._read, owner, split, labelled, self.data_config.partition_kind(*KINDS), self.data_config.alpha, self.data_config.seed)

    def _read(self, domain: str, split: str, with_labels: bool) -> ArrayDataset:
        root = Path(self.data_config.root) if self.data_config.root else None
        examples = domain_suites.load_domain(self.of, domain, split, root, with_labels=with_labels)
        return examples.select(slice(self.data_config.max_examples)) if self.data_config.max_examples else examples


@torch.no_grad()
def accuracy_and_loss(model: nn.Module, data: ArrayDataset, batch: int = EVALUATION_BATCH) -> dict[str, float]:
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
