"""What an aggregation rule is: the clients' models in, the next model out, and what it remembers between rounds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from torch import Tensor

from fedlab.config.schema import Config
from fedlab.errors import ConfigError, RunError
from fedlab.seeds import seeded
from fedlab.strategies.protocol import ARRAYS, EXAMPLES, METRICS, arrays_of, client_metrics
from fedlab.workload import Workload

Arrays = dict[str, np.ndarray[Any, Any]]
Options = TypeVar("Options")


@dataclass(frozen=True)
class ClientUpdate:
    """One client's reply: its whole model by name, the examples behind it, and its metrics."""

    arrays: Mapping[str, Tensor]
    examples: int
    metrics: Mapping[str, float]


def client_updates(replies: Iterable[Message]) -> list[ClientUpdate]:
    """Checked replies as a rule takes them, in the order of partitions in which they come."""
    found = []
    for reply in replies:
        metrics = client_metrics(reply)
        found.append(ClientUpdate(arrays_of(reply.content), int(metrics[EXAMPLES]), metrics))
    return found


class Rule(Generic[Options]):
    """A rule of one run; it lives as long as the server does.

    Parameters
    ----------
    options
        Its own section.
    workload, config
        What is learned, and every option of the run.

    Attributes
    ----------
    learned
        Names of the arrays that training moves; the other floats are statistics, as of a batch norm.
    min_updates
        Fewest updates that it can work with.
    measures
        Names of metrics that it needs from each client beside the examples, see :meth:`client_config`.
    """

    expected_metrics: frozenset[str] = frozenset()

    def __init__(self, options: Options, workload: Workload, config: Config) -> None:
        self.options, self.workload, self.config = options, workload, config
        with seeded("names of a model"):
            self.trainable = frozenset(name for name, _ in workload.model().named_parameters())

    @property
    def min_updates(self) -> int:
        """One will do."""
        return 1

    def incompatibility(self, clients: int) -> str:
        """Why the rule cannot serve a run that is sure of so many clients a round; empty: it can."""
        return ""

    def validate_metrics(self, metrics: Mapping[str, float]) -> str:
        """Why a client's metrics cannot be used; empty: they can."""
        return ""

    def client_config(self) -> dict[str, bool | float]:
        """What goes into the ``config`` of a round's messages; ``client.make_reply`` obeys it."""
        return {}

    def aggregate(
        self, current: Mapping[str, Tensor], updates: Sequence[ClientUpdate], server_round: int
    ) -> dict[str, Tensor]:
        """The next arrays, in the names, shapes and types of ``current``.

        Parameters
        ----------
        current
            What the clients started from.
        updates
            Their models, in the order of partitions.

        Raises
        ------
        RunError
            When there are fewer than :attr:`min_updates`.
        """
        if len(updates) < self.min_updates:
            raise RunError(f"{len(updates)} replies are too few to aggregate; this rule needs {self.min_updates}")
        aggregate_floats = [name for name, tensor in current.items() if tensor.is_floating_point()]
        new = self.aggregate_floats(current, updates, aggregate_floats, server_round)
        for name, tensor in current.items():
            if not tensor.is_floating_point():
                new[name] = torch.stack([one.arrays[name] for one in updates]).amax(0)
        return {name: new[name].to(tensor.dtype) for name, tensor in current.items()}

    def aggregate_floats(
        self, current: Mapping[str, Tensor], updates: Sequence[ClientUpdate], names: Sequence[str], server_round: int
    ) -> dict[str, Tensor]:
        """The next value of every array of floats."""
        raise NotImplementedError

    def metrics(self) -> dict[str, float]:
        """What it measured in the last round."""
        return {}

    def state(self) -> dict[str, Any]:
        """What it remembers: tensors and plain numbers."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take a state back."""


@dataclass(frozen=True)
class AggregationSpec(Generic[Options]):
    """One line of the table of rules."""

    summary: str
    options: type[Options]
    rule: type[Rule[Options]]


def spec_of(found: object, what: str, reference: str) -> AggregationSpec[Any]:
    """Return the spec that the registry found, or refuse what is none.

    Raises
    ------
    ConfigError
        When it is no AggregationSpec.
    """
    if not isinstance(found, AggregationSpec):
        raise ConfigError(f"{what} is a {type(found).__name__}; an AggregationSpec is expected")
    return found


class KeptRecord(ArrayRecord):
    """A record that is not emptied as it is read: Flower then collects garbage for every reply, a second of a round."""

    def to_numpy_ndarrays(self, *, keep_input: bool = True) -> list[np.ndarray[Any, Any]]:
        """Copies of its arrays."""
        return super().to_numpy_ndarrays(keep_input=True)

    def copy(self) -> KeptRecord:
        """The same arrays in a record of this kind."""
        return KeptRecord(dict(self))


class Reply:
    """The part of a message that Flower's strategies read."""

    def __init__(self, arrays: Arrays, examples: int, metrics: Mapping[str, float]) -> None:
        record = KeptRecord({name: Array(array) for name, array in arrays.items()})
        self.content = RecordDict({ARRAYS: record, METRICS: MetricRecord({**metrics, EXAMPLES: examples})})

    def has_error(self) -> bool:
        """Failures were left out before."""
        return False


def ask_flower(
    strategy: FlowerFedAvg,
    updates: Sequence[ClientUpdate],
    names: Iterable[str],
    server_round: int,
    *,
    precise: bool = False,
    metric: str = "",
) -> dict[str, Tensor]:
    """What one of Flower's strategies makes of some arrays.

    Parameters
    ----------
    names
        Of the arrays that it is shown, in this order.
    precise
        Show it float64.
    metric
        Name of a client's metric that it reads beside the examples.
    """
    chosen = list(names)
    if not chosen:
        return {}
    shown = [
        Reply(
            {name: to_numpy(one.arrays[name], precise) for name in chosen},
            one.examples,
            {metric: one.metrics[metric]} if metric else {},
        )
        for one in updates
    ]
    arrays, _ = strategy.aggregate_train(server_round, cast(list[Message], shown))
    if arrays is None:
        raise RunError(f"Flower's {type(strategy).__name__} made nothing of {len(updates)} replies")
    return {name: torch.from_numpy(np.array(array.numpy())) for name, array in arrays.items()}


def mean(updates: Sequence[ClientUpdate], names: Iterable[str], server_round: int = 0) -> dict[str, Tensor]:
    """Flower's FedAvg: the mean weighted by examples."""
    return ask_flower(FlowerFedAvg(), updates, names, server_round)


def to_numpy(tensor: Tensor, precise: bool = False) -> np.ndarray[Any, Any]:
    """A copy of a tensor, which Flower may write to."""
    return np.array(tensor.detach().cpu().numpy(), dtype=np.float64 if precise else None)


def record_of(current: Mapping[str, Tensor], names: Iterable[str]) -> ArrayRecord:
    """Some arrays as Flower's record."""
    return KeptRecord({name: Array(to_numpy(current[name])) for name in names})
