"""The protocol between what is learned and how it is learned together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from fedlab.config.schema import NoOptions
from fedlab.config.sections import Overrides
from fedlab.data.dataset import ArrayDataset, Batch
from fedlab.errors import ConfigError
from fedlab.training import Progress, null_progress


@runtime_checkable
class Workload(Protocol):
    """One learning problem: four methods and the names of its clients. A workload never knows that it is federated."""

    @property
    def clients(self) -> tuple[str, ...]:
        """Names of the client partitions, in order; partition ``i`` belongs to ``clients[i]``."""
        ...

    def model(self) -> nn.Module:
        """A fresh model, with weights from torch's current random stream."""
        ...

    def data(self, partition: int | None, split: str) -> ArrayDataset:
        """Examples of one client, or of the server for ``None``; ``split`` is "train" or "test".

        Raises
        ------
        DataError
            When the data is missing or damaged, or there is no such partition.
        """
        ...

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Scalar training loss of one batch."""
        ...

    def evaluate(self, model: nn.Module, data: ArrayDataset) -> dict[str, float]:
        """Metrics of a model on a data set, all plain floats."""
        ...


@runtime_checkable
class SupportsEpisodes(Protocol):
    """A workload whose clients' classes the model has no output for: heads that are fitted to episodes test G."""

    def episode_accuracies(self, model: nn.Module, data: ArrayDataset) -> Mapping[int, Tensor]:
        """Number of labelled examples a class to the accuracy of each episode, (episodes,)."""
        ...


@runtime_checkable
class SupportsHiddenLabels(Protocol):
    """A simulation that knows the classes of its clients' training examples, also where clients do not."""

    def labels(self, partition: int) -> Tensor | None:
        """Integers (examples,) of one client's training part, or None where nobody knows them.

        For the table of the split only: no strategy may train on them.
        """
        ...


@dataclass(frozen=True)
class Score:
    """What a model is worth by itself.

    Attributes
    ----------
    metrics
        Plain floats by name.
    pictures
        PNG files by a name that says what they show, as "samples"; the run directory keeps them, pages show them.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    pictures: Mapping[str, bytes] = field(default_factory=dict)


@runtime_checkable
class SupportsScoring(Workload, Protocol):
    """A workload whose model is worth something beside anybody's data, as a generative one's samples are."""

    def score(self, model: nn.Module, progress: Progress = null_progress) -> Score:
        """Of the global model alone, from torch's current random stream; the server asks each ``score_every`` rounds.

        ``progress`` is told about work that takes long, as (what, steps done, steps in all).
        """
        ...


@runtime_checkable
class SupportsImages(Workload, Protocol):
    """A workload whose inputs can be read from image files."""

    def images(self, paths: Sequence[Path]) -> ArrayDataset:
        """Files as inputs ``x``, in the order given; DataError names one that cannot be read."""
        ...


@runtime_checkable
class SupportsClassNames(Protocol):
    """A workload whose classes have names, which pages show; elsewhere a class is its number."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by label."""
        ...


def loss_columns(workload: Workload) -> tuple[str, ...]:
    """Columns that a workload's loss reads: its ``loss_columns``, or inputs and labels where it does not say."""
    return tuple(getattr(workload, "loss_columns", ("x", "y")))


def missing_columns(workload: Workload, data: ArrayDataset) -> list[str]:
    """Columns of the workload's loss that some data does not have, as "y" where it takes labels and there are none."""
    return [name for name in loss_columns(workload) if name not in data.columns]


@dataclass(frozen=True)
class WorkloadSpec:
    """What the registry knows of a workload.

    Attributes
    ----------
    workload
        Its class, a dataclass whose fields are its options, or an object that is one already.
    oracle_overrides
        Options with which clients have labels of their own to train on.
    primary_metric
        What comparisons are judged by, unless told otherwise: a group of the clients' metrics, or a metric of the
        server's score; "" for what runs report.
    name
        Prefix of its options where it is named by import path; empty: the class's name in snake case.
    """

    workload: Any
    oracle_overrides: Overrides = field(default_factory=dict)
    primary_metric: str = ""
    name: str = ""

    @property
    def options(self) -> type:
        """The dataclass whose fields are options."""
        return self.workload if isinstance(self.workload, type) and is_dataclass(self.workload) else NoOptions


NEEDED = ("clients", "model", "data", "loss", "evaluate")  # of the protocol


def spec_of(found: object, what: str) -> WorkloadSpec:
    """Return the spec of what the registry found: a spec, a workload's class, or a workload.

    Raises
    ------
    ConfigError
        When it lacks something of the protocol; the message names what.
    """
    if isinstance(found, WorkloadSpec):
        spec = found
    elif isinstance(found, type | Workload):
        spec = WorkloadSpec(found)
    else:
        missing = [name for name in NEEDED if not hasattr(found, name)]
        raise ConfigError(f"{what} is no workload: a {type(found).__name__} without {', '.join(missing)}")
    missing = [name for name in NEEDED if not _has(spec.workload, name)]
    if missing:
        raise ConfigError(
            f"{what} is no workload: it lacks {', '.join(missing)} (see docs/how-to/own-workload.md, or "
            "`fedlab new workload NAME`)"
        )
    return spec


def _has(workload: object, name: str) -> bool:
    return hasattr(workload, name) or (
        isinstance(workload, type) and is_dataclass(workload) and name in workload.__dataclass_fields__
    )
