"""Shared by workloads of several domains: the clients of each domain, their data, and accuracy.

The server has the source domain. A target domain belongs to one client, or to several (``usps-0``, ``usps-1``, ...)
that share its training part; **each of these tests on the domain's whole test part**, so that metrics of one domain are
comparable, and how training data are divided changes no test set.

If a scheme depends on labels (``dirichlet``, ``shards``), the simulation reads a target's training labels to assign
rows and for statistics of the partition, and for nothing else: a client gets inputs without labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Sequence
from functools import lru_cache
from typing import ClassVar, NamedTuple, Protocol

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedlab.config.data_options import DEFAULT_DATA, DataConfig
from fedlab.config.sections import split_names
from fedlab.data.dataset import ArrayDataset, Batch
from fedlab.data.images import domain_suites
from fedlab.data.images.domain_suites import DomainSuite
from fedlab.data.partitioners import PARTITIONS, partition_indices
from fedlab.data.sources import DataSource
from fedlab.errors import ConfigError, DataError, name_list, suggest
from fedlab.metrics import FRACTION, Metric
from fedlab.seeds import seed_of

ACCURACY = Metric("accuracy", unit=FRACTION, higher_is_better=True, confusion="accuracy")
EVALUATION_BATCH = 500

KINDS = ("dirichlet", "iid", "shards", "quantity", "balanced_dirichlet")  # the keys of PARTITIONS, the default first


class DividesDomains(Hashable, Protocol):
    """A workload whose domains may each be divided among several clients; equal workloads share what is read."""

    @property
    def data_config(self) -> DataConfig:
        """The run's section ``data``."""
        ...

    @property
    def partition(self) -> str:
        """Scheme by which a domain's training examples are divided, a key of ``PARTITIONS``."""
        ...

    def read_domain(self, domain: str, split: str, with_labels: bool) -> ArrayDataset:
        """Return the "train" or "test" examples of a domain, training examples with labels only if asked for."""
        ...


class ClientSpec(NamedTuple):
    """One client: its name, its domain, and which of how many parts of the domain it trains on."""

    name: str
    domain: str
    part: int = 0
    parts: int = 1


@lru_cache(maxsize=16)
def client_specs(domains: tuple[str, ...], parts: int) -> tuple[ClientSpec, ...]:
    """Return the clients of some domains, ``parts`` each."""
    return tuple(
        ClientSpec(f"{domain}-{part}" if parts > 1 else domain, domain, part, parts)
        for domain in domains
        for part in range(parts)
    )


@lru_cache(maxsize=16)
def client_names(clients: tuple[ClientSpec, ...]) -> tuple[str, ...]:
    """Return the clients' names, made once: a name is looked up for every message."""
    return tuple(client.name for client in clients)


def unused_of_domains(data: DataConfig, partition: str) -> frozenset[str]:
    """Return the options of ``data`` that have no effect where each domain belongs to ``clients_per_domain`` clients.

    Parameters
    ----------
    partition
        Scheme by which a domain is divided, a key of ``PARTITIONS``.
    """
    division = {"data.partition", "data.alpha", "data.min_examples"} if data.clients_per_domain == 1 else set()
    return frozenset({"data.test_classes"} | division | (set() if PARTITIONS[partition].draws else {"data.alpha"}))


def check_known(domain: str, known: Collection[str], noun: str, otherwise: str = "") -> None:
    """Validate that a domain exists.

    Raises
    ------
    ConfigError
        With the near match; ``noun`` names the kind of domain, ``otherwise`` is another remedy.
    """
    if domain not in known:
        raise ConfigError(f"unknown {noun} domain {domain!r}; {suggest(domain, known)}{otherwise}")


def check_unique(source: str, targets: Sequence[str], clients: Sequence[str]) -> None:
    """Validate that each domain and each client's name appears once.

    Raises
    ------
    ConfigError
        With the name that appears twice.
    """
    twice = [name for name in targets if targets.count(name) > 1 or name == source]
    if twice:
        raise ConfigError(
            f"domain {twice[0]!r} appears twice among source {source!r} and targets {', '.join(targets)!r}; each "
            "domain has one owner"
        )
    if same := [name for name, count in Counter(clients).items() if count > 1]:
        raise ConfigError(f"two clients would be called {same[0]!r}; rename the one that brings its own images")


def check_partition(partition: int | None, clients: Sequence[str]) -> None:
    """Validate that a partition exists; None is the server.

    Raises
    ------
    DataError
        With the names of the clients.
    """
    if partition is not None and not 0 <= partition < len(clients):
        raise DataError(f"there is no partition {partition}; this workload has {len(clients)}: {name_list(clients)}")


def client_data(workload: DividesDomains, client: ClientSpec, split: str, with_labels: bool) -> ArrayDataset:
    """Return a client's data: its part of the domain's training data, or all of the domain's test data.

    Parameters
    ----------
    workload
        Reads the domain, and says how it is divided among several clients.
    split
        "train" or "test".
    with_labels
        True if training labels come with it: for upper bounds, and for statistics of the partition.

    Raises
    ------
    ConfigError
        When there are too few examples for so many clients.
    """
    examples = workload.read_domain(client.domain, split, with_labels)
    if client.parts == 1 or split != "train":
        return examples
    return examples.select(domain_rows(workload, client.domain, client.parts)[client.part])


@lru_cache(maxsize=32)
def domain_rows(workload: DividesDomains, domain: str, parts: int) -> Sequence[Tensor]:
    """Return the rows of a domain's training examples (rows,) that each of its clients has, drawn once a process.

    Every domain has a random stream of its own.
    """
    data, by_label = workload.data_config, PARTITIONS[workload.partition].by_label
    examples = workload.read_domain(domain, "train", by_label)
    labels = examples.columns["y"] if by_label else torch.zeros(len(examples))
    seed = seed_of(data.seed, "split", domain)
    return partition_indices(workload.partition, labels, parts, data.alpha, seed, data.min_examples)


@dataclass(frozen=True)
class DomainSuiteWorkload:
    """A workload whose server and clients have domains of one suite, any of which may be the source.

    A subclass defines the suite (``of``), the default ``source``, the augmentation of the server's training examples
    (``source_view``; ``view_on_host`` where it computes on a CPU alone), and the ``model``.
    """

    of: ClassVar[DomainSuite]
    view_on_host: ClassVar[bool] = False

    source: str = Field("", description="domain of the server, with labels")
    targets: str = Field("", description="domains of the clients, comma-separated; empty: all but the source")
    client_labels: bool = Field(False, description="clients have training labels, for upper bounds only")
    augment: bool = Field(True, description="random views of the source")
    data_config: DataConfig = Field(DEFAULT_DATA, exclude=True)

    def __post_init__(self) -> None:
        """Validate the domains: each exists and has one owner."""
        for domain in (self.source, *self._domains):
            check_known(domain, self.of.domains, self.of.name)
        check_unique(self.source, self._domains, self.clients)
        _ = self.partition

    @staticmethod
    def source_view(batch: Batch) -> Batch:
        """Return a random view of a batch of the source as it is read."""
        raise NotImplementedError

    def model(self) -> nn.Module:
        """Return a fresh network with ``features`` and ``head``."""
        raise NotImplementedError

    @property
    def clients(self) -> tuple[str, ...]:
        """Names of the clients: one for each target, or each part of a target."""
        return client_names(self._client_specs)

    @property
    def partition(self) -> str:
        """Scheme by which a target is divided among its clients."""
        return self.data_config.partition_kind(*KINDS)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, by label."""
        return self.of.classes

    def data(self, partition: int | None, split: str) -> ArrayDataset:
        """Return inputs as ``x`` and, if their owner has labels, ``y``.

        With ``augment`` every read of the server's training examples gives new random views.
        """
        check_partition(partition, self.clients)
        if partition is not None:
            return client_data(self, self._client_specs[partition], split, with_labels=self.client_labels)
        examples = self.read_domain(self.source, split, True)
        view = self.source_view if self.augment else self.of.to_float
        on_host = examples.host_only or (self.augment and self.view_on_host)
        return ArrayDataset(examples.columns, view, on_host) if split == "train" else examples

    def data_sources(self, partition: int | None) -> Sequence[DataSource]:
        """See :class:`fedlab.workload.SupportsDataSources`."""
        domain = self.source if partition is None else self._client_specs[partition].domain
        examples = len(self.read_domain(domain, "train", False))
        return [domain_suites.suite_source(self.of, domain, self.data_config.root_folder, examples)]

    def labels(self, partition: int) -> Tensor:
        """See :class:`fedlab.workload.SupportsHiddenLabels`."""
        return client_data(self, self._client_specs[partition], "train", with_labels=True).columns["y"]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy, a scalar."""
        smoothing = self.data_config.label_smoothing
        return cross_entropy(model(batch["x"]), batch["y"], label_smoothing=smoothing)

    def evaluate(self, model: nn.Module, data: ArrayDataset) -> dict[str, float]:
        """Return accuracy and cross-entropy; nothing without labels."""
        return accuracy_and_loss(model, data)

    @property
    def _domains(self) -> tuple[str, ...]:
        others = (domain for domain in self.of.domains if domain != self.source)
        return split_names("targets", self.targets) or tuple(others)

    @property
    def unused_options(self) -> frozenset[str]:
        """See :func:`fedlab.workload.unused_options`."""
        return unused_of_domains(self.data_config, self.partition)

    @property
    def _client_specs(self) -> tuple[ClientSpec, ...]:
        return client_specs(self._domains, self.data_config.clients_per_domain)

    def read_domain(self, domain: str, split: str, with_labels: bool) -> ArrayDataset:
        """See :class:`DividesDomains`."""
        examples = domain_suites.load_domain(
            self.of, domain, split, self.data_config.root_folder, with_labels=with_labels
        )
        return examples.select(slice(self.data_config.max_examples)) if self.data_config.max_examples else examples


@torch.no_grad()
def accuracy_and_loss(model: nn.Module, data: ArrayDataset, batch: int = EVALUATION_BATCH) -> dict[str, float]:
    """Return ``accuracy`` and ``loss``, mean cross-entropy, of a model from ``x`` to logits; nothing without labels."""
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
