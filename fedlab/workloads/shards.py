"""Shards: one set divided among clients. Pool and rows are made once a process, and a shard is a view of the pool.

Training examples are divided by ``data.partition``. Test examples are divided evenly, however training examples are;
with fewer than ten for each client they are shared, see :func:`fedlab.data.partitioners.held_out_indices`. With
``data.test_classes=own`` each client tests on the classes that it trains on, see
:func:`fedlab.data.partitioners.matching_indices`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import Protocol

from torch import Tensor

from fedlab.config.data_options import DataConfig
from fedlab.data.dataset import ArrayDataset
from fedlab.data.partitioners import PARTITIONS, held_out_indices, matching_indices, partition_indices


class SharedSet(Hashable, Protocol):
    """A workload whose clients divide one set; equal workloads share what is read."""

    @property
    def data_config(self) -> DataConfig:
        """The run's section ``data``."""
        ...

    @property
    def partition(self) -> str:
        """Scheme by which the training examples are divided, a key of ``PARTITIONS``."""
        ...

    @property
    def test_partition(self) -> str:
        """Scheme by which the test examples are divided, see ``held_out_indices``."""
        ...

    def pool(self, split: str) -> ArrayDataset:
        """Return all examples that clients share, with their labels ``y``."""
        ...


def unused_of_shards(partition: str) -> frozenset[str]:
    """Return the options of ``data`` that have no effect where one set is divided, by a key of ``PARTITIONS``."""
    return frozenset({"data.clients_per_domain"} | (set() if PARTITIONS[partition].draws else {"data.alpha"}))


@lru_cache(maxsize=8)
def numbered_names(stem: str, count: int) -> tuple[str, ...]:
    """Return the names of clients as ``shard-0``, made once: they are looked up for every message."""
    return tuple(f"{stem}-{number}" for number in range(count))


def shard(workload: SharedSet, partition: int, split: str) -> ArrayDataset:
    """Return the examples of one client.

    Raises
    ------
    DataError, ConfigError
        When files are missing, or a client would get too few examples.
    """
    return pool(workload, split).select(shard_rows(workload, split)[partition])


def shard_labels(workload: SharedSet, partition: int) -> Tensor:
    """Return the labels (examples,) of one client's training examples.

    Raises
    ------
    DataError, ConfigError
        As :func:`shard`.
    """
    return shard(workload, partition, "train").columns["y"]


@lru_cache(maxsize=8)
def pool(workload: SharedSet, split: str) -> ArrayDataset:
    """Return all examples that clients share."""
    return workload.pool(split)


@lru_cache(maxsize=8)
def shard_rows(workload: SharedSet, split: str) -> Sequence[Tensor]:
    """Return the rows of the pool (rows,) that each client has."""
    data, labels = workload.data_config, pool(workload, split).columns["y"]
    if split == "train":
        kind = workload.partition
        return partition_indices(kind, labels, data.num_shards, data.alpha, data.seed, data.min_examples)
    if data.test_classes == "own":
        known = pool(workload, "train").columns["y"]
        return matching_indices(labels, [known[rows] for rows in shard_rows(workload, "train")], data.seed)
    return held_out_indices(workload.test_partition, labels, data.num_shards, data.seed)
