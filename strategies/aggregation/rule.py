"""Base classes of aggregation rules: clients' models in, the next global model out.

A round is ``begin(current)``, ``add(update, weight)`` for each client in the order of partitions, and ``finish``;
``Rule.aggregate`` is these three, for replies as they come. A rule whose arithmetic is a sum over clients
(:class:`WeightedMean` and what is made of it) holds the current model and the sums, whatever the number of clients; one
that compares clients holds every update and says so in ``needs_all_updates``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

import torch
from flwr.app import ArrayRecord, Message
from torch import Tensor

from fedlab.comm.stacked_replies import stacked_content
from fedlab.comm.tensors import RowTensors, tensors_on_demand
from fedlab.config.schema import Config
from fedlab.errors import ConfigError, RunError
from fedlab.privacy.accounting import PrivacyAccount
from fedlab.strategies.protocol import ARRAYS, EXAMPLES, client_metrics
from fedlab.vectorized.stacked_states import StackedStates
from fedlab.workload import Workload, blank_model

Options = TypeVar("Options")


@dataclass(frozen=True)
class ClientUpdate:
    """One client's reply.

    Attributes
    ----------
    arrays
        Its model's arrays by name.
    examples
        Its number of examples.
    metrics
        Its metrics.
    weight
        Its weight in the mean, where the strategy has one of its own; None: the rule says, see :meth:`Rule.weight`.
    """

    arrays: Mapping[str, Tensor]
    examples: int
    metrics: Mapping[str, float]
    weight: float | None = None


def client_update(reply: Message) -> ClientUpdate:
    """Return a validated reply as an update."""
    metrics = client_metrics(reply)
    if (stacked := stacked_content(reply)) is not None:
        return ClientUpdate(RowTensors(stacked.of.arrays[ARRAYS], stacked.row), int(metrics[EXAMPLES]), metrics)
    arrays = reply.content[ARRAYS]
    assert isinstance(arrays, ArrayRecord)
    return ClientUpdate(tensors_on_demand(arrays), int(metrics[EXAMPLES]), metrics)


def client_updates(replies: Iterable[Message]) -> Iterator[ClientUpdate]:
    """Yield validated replies as updates, in the order in which they come (that of partitions)."""
    return map(client_update, replies)


class Rule(Generic[Options]):
    """An aggregation rule of one run; it lives as long as the server does.

    A rule implements ``add_floats`` and ``aggregate_floats``, and ``state`` and ``restore`` if it remembers anything
    between rounds. Integer arrays (counters) take the largest value that a client sent, whatever the rule.

    Parameters
    ----------
    options
        Its own section.
    workload, config
        What is learned, and the run's configuration.

    Attributes
    ----------
    needs_all_updates
        True where ``add`` keeps every update until ``finish``; False where it keeps sums only.
    expected_metrics
        Names of the metrics that it needs from each client beside the number of examples, see :meth:`client_config`.
    uses_weights
        False where each client counts once, whatever its examples or the weight that a strategy gives it.
    weighed_by
        Those of the expected metrics by which a client weighs, each with the value at which it would weigh nothing.
    trainable
        Names of the model's parameters; its other float arrays are statistics, as of a batch norm.
    min_updates
        Smallest number of updates that it can aggregate.
    current
        Arrays that this round's clients started from; empty between rounds.
    floats
        Names of the float arrays in ``current``.
    count
        Number of updates added in this round.
    """

    needs_all_updates: ClassVar[bool] = False
    uses_weights: ClassVar[bool] = True
    weighed_by: ClassVar[Mapping[str, float]] = {}
    expected_metrics: frozenset[str] = frozenset()

    def __init__(self, options: Options, workload: Workload, config: Config) -> None:
        self.options, self.workload, self.config = options, workload, config
        self.trainable = frozenset(name for name, _ in blank_model(workload).named_parameters())
        self.begin({})

    @property
    def min_updates(self) -> int:
        """Smallest number of updates that the rule can aggregate."""
        return 1

    def incompatibility(self, clients: int) -> str:
        """Return why the rule cannot serve a run that is sure of ``clients`` updates a round; empty if it can."""
        return ""

    def validate_metrics(self, metrics: Mapping[str, float]) -> str:
        """Return why a client's metrics cannot be used; empty if they can."""
        return ""

    def client_config(self) -> dict[str, bool | float]:
        """Return the entries for the ``config`` of the round's messages, which ``client.make_reply`` obeys."""
        return {}

    def weight(self, update: ClientUpdate) -> float:
        """Return a client's weight in the mean, before normalization: the strategy's, else its number of examples.

        Where clients are sampled by their numbers of examples, each weighs the same, or these would count twice.
        """
        if update.weight is not None:
            return update.weight
        return 1.0 if self.config.run.sampling == "examples" else float(update.examples)

    def aggregate(
        self, current: Mapping[str, Tensor], updates: Iterable[ClientUpdate], server_round: int
    ) -> dict[str, Tensor]:
        """Return the next arrays, in the names, order, shapes and types of ``current``.

        Parameters
        ----------
        current
            The arrays that the clients started from.
        updates
            The clients' updates, in the order of partitions; each is read once, as it comes.

        Raises
        ------
        RunError
            When there are fewer updates than :attr:`min_updates`.
        """
        total = 0.0
        self.begin(current)
        for update in updates:
            weight = self.weight(update)
            self.add(update, weight)
            total += weight
        return self.finish(server_round, total)

    def begin(self, current: Mapping[str, Tensor]) -> None:
        """Begin a round from the arrays that were sent to the clients, without any update."""
        self.current, self.count = current, 0
        self.floats = [name for name, tensor in current.items() if tensor.is_floating_point()]
        self._integers = current.keys() - set(self.floats)
        self.counters: dict[str, Tensor] = {}
        self._rows = _RowsOfAStack()

    def add(self, update: ClientUpdate, weight: float) -> None:
        """Add one client's update with its weight in the mean; :meth:`finish` is told the sum of the weights."""
        self.count += 1
        arrays = update.arrays
        if not isinstance(arrays, RowTensors):
            self._raise_counters(arrays)
        elif self._integers:
            if arrays.of is not self._rows.of:
                self._raise_to_rows()
                self._rows = _RowsOfAStack(arrays.of)
            self._rows.rows.append(arrays.row)
            if len(self._rows.rows) == len(arrays.of):  # its memory is the next clients'
                self._raise_to_rows()
        self.add_floats(update, weight)

    def _raise_counters(self, arrays: Mapping[str, Tensor]) -> None:
        """Let the counters be at least those of some arrays."""
        for name in self._integers:
            here = arrays[name]
            self.counters[name] = torch.maximum(self.counters.get(name, here), here)

    def _raise_to_rows(self) -> None:
        """Let the counters be at least those of the rows that wait for others of their stack."""
        waiting, self._rows = self._rows, _RowsOfAStack()
        if waiting.of is not None:
            self._raise_counters(waiting.of.largest(waiting.rows, self._integers))

    def finish(self, server_round: int, total: float) -> dict[str, Tensor]:
        """Return the next arrays, as :meth:`aggregate`, and forget the round's updates.

        Parameters
        ----------
        total
            Sum of the weights that updates were added with.

        Raises
        ------
        RunError
            When there are fewer updates than :attr:`min_updates`.
        """
        if self.count < self.min_updates:
            raise RunError(f"too few replies to aggregate: {self.count}, and this rule needs {self.min_updates}")
        self._raise_to_rows()
        new = {**self.counters, **self.aggregate_floats(server_round, total)}
        result = {name: new[name].to(tensor.dtype) for name, tensor in self.current.items()}
        self.begin({})
        return result

    def add_floats(self, update: ClientUpdate, weight: float) -> None:
        """Add the float arrays of one update."""
        raise NotImplementedError

    def aggregate_floats(self, server_round: int, total: float) -> dict[str, Tensor]:
        """Return the next value of every float array, of any float type."""
        raise NotImplementedError

    def privacy(self) -> PrivacyAccount | None:
        """Return the account of what differential privacy has cost; None where nothing is noised."""
        return None

    def metrics(self) -> dict[str, float]:
        """Return what the rule measured in the last round."""
        return {}

    def state(self) -> dict[str, Any]:
        """Return what the rule remembers between rounds: tensors and plain numbers."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""


class WeightedMean(Rule[Options]):
    """The weighted mean of all float arrays; rules made of it change what happens to the trainable ones.

    The mean of arrays x_k is (sum of n_k x_k) / n, one client after another and in the arrays' own type: that of
    Flower's FedAvg but for rounding, since n is not known before the last reply. Models that were trained at once on a
    GPU are summed there, all in a few operations, and so in another order.
    """

    def begin(self, current: Mapping[str, Tensor]) -> None:
        """Begin a round with empty sums."""
        super().begin(current)
        self.sums: dict[str, Tensor] = {}
        self.stack = _RowsOfAStack()

    def add_floats(self, update: ClientUpdate, weight: float) -> None:
        """Add weight x_k to the sums."""
        arrays = update.arrays
        if not isinstance(arrays, RowTensors) or not arrays.of.is_summed_at_once:
            accumulate(self.sums, arrays, self.floats, weight)
            return
        if arrays.of is not self.stack.of:
            self._add_stack()
            self.stack = _RowsOfAStack(arrays.of)
        self.stack.rows.append(arrays.row)
        self.stack.weights.append(weight)
        if len(self.stack.rows) == len(arrays.of):  # its memory is the next clients'
            self._add_stack()

    def _add_stack(self) -> None:
        """Add the rows that wait for others of their stack."""
        of, self.stack = self.stack, _RowsOfAStack()
        if of.of is not None:
            accumulate(self.sums, of.of.weighted_sums(of.rows, of.weights, self.floats), self.floats)

    def mean(self, total: float) -> dict[str, Tensor]:
        """Return the sums over ``total``, in place; contiguous, which those of stacked linear layers are not."""
        self._add_stack()
        return {name: value.div_(total).contiguous() for name, value in self.sums.items()}

    def aggregate_floats(self, server_round: int, total: float) -> dict[str, Tensor]:
        """Return the mean, and of trainable arrays the server's step towards it."""
        mean = self.mean(total)
        trainable = {name: value for name, value in mean.items() if name in self.trainable}
        return {**mean, **self.step(trainable, server_round)}

    def step(self, mean: Mapping[str, Tensor], server_round: int) -> Mapping[str, Tensor]:
        """Return the next trainable arrays from the clients' mean of them: the mean itself."""
        return mean


@dataclass
class _RowsOfAStack:
    """Updates that are rows of one stack of models, which are taken together."""

    of: StackedStates | None = None
    rows: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)


def accumulate(
    sums: dict[str, Tensor], terms: Mapping[str, Tensor], names: Collection[str], weight: float = 1.0
) -> None:
    """Add weighted terms to the sums of their names in place; a sum that is not there yet begins with its term."""
    if isinstance(terms, RowTensors) and terms.of.device.type == "cpu":  # without a copy of each row
        terms = {name: terms.of.rows(name)[terms.row] for name in names}
    known = [name for name in names if name in sums]
    if known:
        torch._foreach_add_([sums[name] for name in known], [terms[name] for name in known], alpha=weight)
    if len(known) < len(names):
        sums.update({name: terms[name] * weight for name in names if name not in sums})


@dataclass(frozen=True)
class AggregationSpec(Generic[Options]):
    """Description of an aggregation rule for the registry.

    Attributes
    ----------
    options
        Dataclass of its options, as they appear under its name in a preset.
    rule
        Its class.
    name
        Prefix of its options where it is named by import path; empty: the module's name.
    """

    options: type[Options]
    rule: type[Rule[Options]]
    name: str = ""


def spec_of(found: object, what: str) -> AggregationSpec[Any]:
    """Return the spec that the registry found, or refuse what is none.

    Raises
    ------
    ConfigError
        When it is no AggregationSpec.
    """
    if not isinstance(found, AggregationSpec):
        raise ConfigError(f"{what} is a {type(found).__name__}; an AggregationSpec is expected")
    return found
