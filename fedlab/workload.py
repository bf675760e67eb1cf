"""The protocol of a workload: a learning problem, independent of how it is federated."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from fedlab.config.data_options import DATA_CONFIG, DataConfig
from fedlab.config.schema import NoOptions
from fedlab.config.sections import Overrides, options
from fedlab.data.dataset import ArrayDataset, Batch
from fedlab.data.sources import DataSource
from fedlab.errors import ConfigError
from fedlab.metrics import Metric, Phase
from fedlab.models.copying import copy_module
from fedlab.seeds import seeded
from fedlab.training import Progress, null_progress

OF_THE_RUN = frozenset({"data.num_clients", "data.label_smoothing"})  # clients taken, and checked for each workload


@runtime_checkable
class Workload(Protocol):
    """One learning problem: four methods and the names of its clients, without any knowledge of federation."""

    @property
    def clients(self) -> tuple[str, ...]:
        """Names of the client partitions, in order; partition ``i`` belongs to ``clients[i]``."""
        ...

    def model(self) -> nn.Module:
        """Return a fresh model, with weights from torch's current random stream."""
        ...

    def data(self, partition: int | None, split: str) -> ArrayDataset:
        """Return the examples of one client, or of the server for ``None``; ``split`` is "train" or "test".

        Raises
        ------
        DataError
            When the data is missing or damaged, or there is no such partition.
        """
        ...

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the training loss of one batch, a scalar."""
        ...

    def evaluate(self, model: nn.Module, data: ArrayDataset) -> dict[str, float]:
        """Return the metrics of a model on a data set, all plain floats."""
        ...


@runtime_checkable
class SupportsEpisodes(Protocol):
    """A workload whose clients have other classes than the model: it is evaluated by classifiers fitted to episodes."""

    def episode_accuracies(self, model: nn.Module, data: ArrayDataset) -> Mapping[int, Tensor]:
        """Return the accuracy of each episode (episodes,) by number of labeled examples per class."""
        ...


@runtime_checkable
class SupportsHiddenLabels(Protocol):
    """A simulation that knows the classes of its clients' training examples, even if clients do not."""

    def labels(self, partition: int) -> Tensor | None:
        """Return the labels (examples,) of one client's training part, integers; None if they are unknown.

        For statistics of the partition only: no strategy may train on them.
        """
        ...


@dataclass(frozen=True)
class Score:
    """Metrics of a model that do not depend on a client's data.

    Attributes
    ----------
    metrics
        Plain floats by name.
    pictures
        PNG files by name, for instance "samples"; they are saved in the run directory and shown in reports.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    pictures: Mapping[str, bytes] = field(default_factory=dict)


@runtime_checkable
class SupportsScoring(Workload, Protocol):
    """A workload whose model has metrics of its own, such as the quality of a generative model's samples."""

    def score(self, model: nn.Module, progress: Progress = null_progress) -> Score:
        """Return the score of the global model, from torch's current random stream.

        The server calls it every ``sample_every`` rounds.

        Parameters
        ----------
        progress
            Called during long work with a phase, the steps done and all steps.
        """
        ...


@runtime_checkable
class SupportsImages(Workload, Protocol):
    """A workload whose inputs can be read from image files."""

    def images(self, paths: Sequence[Path]) -> ArrayDataset:
        """Return files as inputs ``x``, in the order given.

        Raises
        ------
        DataError
            With the name of a file that cannot be read.
        """
        ...


@runtime_checkable
class SupportsViews(Protocol):
    """A workload that makes random views of its inputs."""

    def view(self, x: Tensor, weak: bool = False) -> Tensor:
        """Return a random view of each input, of the same shape and device; a weak one changes it less.

        Random numbers are drawn on the CPU, so that they do not depend on the device.
        """
        ...


@runtime_checkable
class SupportsBatchChecks(Protocol):
    """A workload whose loss refuses some batches by their values.

    The loss calls the check itself, except inside ``torch.func.vmap``, which cannot look at values
    (:func:`fedlab.models.mapped.is_mapped`); whoever maps the loss calls it before.
    """

    def check_batch(self, batch: Batch) -> None:
        """Validate a batch.

        Raises
        ------
        DataError
            When the loss must not take it.
        """
        ...


@runtime_checkable
class SupportsDataSources(Protocol):
    """A workload that names the data sets it reads; a run says so in its first lines and in its manifest."""

    def data_sources(self, partition: int | None) -> Sequence[DataSource]:
        """Return the sets that the training examples of one client, or of the server for ``None``, come from.

        Raises
        ------
        DataError
            When they are missing.
        """
        ...


@runtime_checkable
class SupportsClassNames(Protocol):
    """A workload whose classes have names, which reports show; without them a class is shown by its number."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, by label."""
        ...


def blank_model(workload: Workload) -> nn.Module:
    """Return the workload's model with any weights, to load others into.

    It is a copy of one that is made once a process, on a stream of its own: nothing is drawn from the current random
    stream, so what a client draws afterwards does not depend on how a model is initialized.
    """
    return copy_module(model_template(workload))


def model_template(workload: Workload) -> nn.Module:
    """Return the model that :func:`blank_model` copies, for its structure, names and shapes; nobody may change it."""
    return _template(workload)[1]


def model_shapes(workload: Workload) -> Mapping[str, torch.Size]:
    """Return the shapes of the model's state by name."""
    return _template(workload)[2]


def _template(workload: Workload) -> tuple[Workload, nn.Module, Mapping[str, torch.Size]]:
    for entry in _templates:
        if entry[0] is workload:
            return entry
    with seeded("blank model"):
        model = workload.model()
    _templates.append((workload, model, {name: tensor.shape for name, tensor in model.state_dict().items()}))
    return _templates[-1]


_templates: deque[tuple[Workload, nn.Module, Mapping[str, torch.Size]]] = deque(maxlen=4)


def loss_columns(workload: Workload) -> tuple[str, ...]:
    """Return the columns that a workload's loss reads: its ``loss_columns``, by default inputs and labels."""
    return tuple(getattr(workload, "loss_columns", ("x", "y")))


def missing_columns(workload: Workload, data: ArrayDataset) -> list[str]:
    """Return the columns that the workload's loss reads and the data lacks, for instance "y" without labels."""
    return [name for name in loss_columns(workload) if name not in data.columns]


def unused_options(workload: Workload) -> frozenset[str]:
    """Return the options of the section ``data`` that have no effect on a workload, by key.

    They are its ``unused_options``; without such an attribute, all but those that the run itself reads where it has no
    field ``data_config``, else none. A user who sets one of them is told so.
    """
    if hasattr(workload, DATA_CONFIG):
        return frozenset(getattr(workload, "unused_options", ()))
    return frozenset(options({"data": DataConfig})) - OF_THE_RUN


@dataclass(frozen=True)
class WorkloadSpec:
    """Entry of a workload in the registry.

    Attributes
    ----------
    workload
        Its class, a dataclass whose fields are its options, or an object that is one already.
    oracle_overrides
        Options with which clients have labels to train on.
    primary_metric
        Metric that comparisons use by default: a group of the clients' metrics, or a metric of the server's score; ""
        for those that runs report.
    smooths_labels
        True if the loss is a cross-entropy that spreads ``data_config.label_smoothing`` of each label over all classes.
    metrics, phases
        Declarations of what the workload reports and of the phases that it names, see :mod:`fedlab.metrics`.
    name
        Prefix of its options if it is given by import path; empty: the class's name in snake case.
    """

    workload: Any
    oracle_overrides: Overrides = field(default_factory=dict)
    primary_metric: str = ""
    smooths_labels: bool = False
    metrics: tuple[Metric, ...] = ()
    phases: tuple[Phase, ...] = ()
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
