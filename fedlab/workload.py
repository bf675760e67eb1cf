"""The protocol between what is learned and how it is learned together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from fedlab.data.dataset import Batch, ArrayDataset
from fedlab.training import Progress, silent


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
class TestsNewClasses(Protocol):
    """A workload whose clients' classes the model has no output for: heads that are fitted to episodes test G."""

    def episode_accuracies(self, model: nn.Module, data: ArrayDataset) -> Mapping[int, Tensor]:
        """Number of labelled examples a class to the accuracy of each episode, (episodes,)."""
        ...


@runtime_checkable
class KnowsLabels(Protocol):
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
class Scored(Workload, Protocol):
    """A workload whose model is worth something beside anybody's data, as a generative one's samples are."""

    def score(self, model: nn.Module, progress: Progress = silent) -> Score:
        """Of the global model alone, from torch's current random stream; the server asks each ``score_every`` rounds.

        ``progress`` is told about work that takes long, as (what, steps done, steps in all).
        """
        ...


@runtime_checkable
class SeesImages(Workload, Protocol):
    """A workload whose inputs can be read from image files."""

    def images(self, paths: Sequence[Path]) -> ArrayDataset:
        """Files as inputs ``x``, in the order given; DataError names one that cannot be read."""
        ...


@runtime_checkable
class NamesClasses(Protocol):
    """A workload whose classes have names, which pages show; elsewhere a class is its number."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by label."""
        ...


def loss_columns(workload: Workload) -> tuple[str, ...]:
    """Columns that a workload's loss reads: its ``loss_columns``, or inputs and labels where it does not say."""
    return tuple(getattr(workload, "loss_columns", ("x", "y")))


def lacking(workload: Workload, data: ArrayDataset) -> list[str]:
    """Columns of the workload's loss that some data does not have, as "y" where it takes labels and there are none."""
    return [name for name in loss_columns(workload) if name not in data.columns]
