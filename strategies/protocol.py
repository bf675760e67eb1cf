"""What every strategy shares: the two halves' types, and the names of what crosses the wire.

A message to a client carries an ArrayRecord ``arrays`` (the model's state by name) and a ConfigRecord ``config`` with
``server-round``; a reply carries a MetricRecord ``metrics`` with ``num-examples`` and whatever arrays the strategy
needs. Strategies that move more say so in their own module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from torch import nn

from fedlab.comm.grid import PartitionGrid
from fedlab.config.schema import Config
from fedlab.config.sections import Overrides
from fedlab.data.dataset import ArrayDataset
from fedlab.errors import IncompatibleWeightsError
from fedlab.metrics import Metric, Phase
from fedlab.training import Progress, resolve_device
from fedlab.workload import Workload

MOMENTUM = 0.9  # of clients' local SGD
ARRAYS, CONFIG, METRICS, ROUND, EXAMPLES = "arrays", "config", "metrics", "server-round", "num-examples"
FINAL = "final-round"  # in the config of a round's test, when a budget ends the run with it


@dataclass(frozen=True)
class ClientContext:
    """Who a client is: its partition, and the run's configuration with this machine's own settings over it."""

    partition: int
    config: Config

    @property
    def device(self) -> torch.device:
        """The torch device that this client computes on."""
        return resolve_device(self.config.run.device)


ClientFn = Callable[[Workload, Message, ClientContext], RecordDict]
ModelStates = dict[str, Mapping[str, torch.Tensor]]  # record name -> state of a module


class ServerStrategy(Protocol):
    """The server half of a strategy: Flower's questions, and what starting and resuming need."""

    def initialize(self) -> ArrayRecord:
        """The arrays before round 1; whatever the server trains beforehand, it trains here."""
        ...

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Messages to the clients that train in this round; none if no client does."""
        ...

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The new arrays from the clients' replies, which come in the order of their partitions."""
        ...

    def check(self, reply: Message) -> None:
        """Raise :class:`fedlab.strategies.validation.InvalidUpdate` if a training reply may not be used."""
        ...

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Messages to the clients that evaluate."""
        ...

    def metrics(self) -> dict[str, float]:
        """What the server itself measured in the last round."""
        ...

    def events(self) -> list[dict[str, Any]]:
        """What happened in the last round that is no number: plain JSON, each with a ``note`` that says it in words."""
        ...

    def state(self) -> dict[str, Any]:
        """All that lives from round to round beside the arrays: tensors, plain numbers, lists and dicts of them."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take a state back, so that the next round gives the same bits as if nothing had happened."""
        ...


def from_message(workload: Workload, message: Message, context: ClientContext) -> ModelStates:
    """What predicts on a client once it has been tested: the model that was sent."""
    return {ARRAYS: arrays_of(message.content)}


def from_checkpoint(workload: Workload, checkpoint: Mapping[str, Any], partition: int, config: Config) -> ModelStates:
    """What predicts on a client, from the server's checkpoint: the same."""
    return {ARRAYS: checkpoint[ARRAYS]}


def no_example_weights(state: Mapping[str, Any], partition: int, features: torch.Tensor) -> torch.Tensor | None:
    """Return None: the strategy does not weight examples."""
    return None


def full_model(workload: Workload, states: ModelStates) -> nn.Module:
    """Inputs ``x`` to logits (batch, classes)."""
    return load(workload.model(), states[ARRAYS], torch.device("cpu")).eval()


@dataclass(frozen=True)
class ClientFunctions:
    """The client half of a strategy: pure functions of workload, message and context.

    ``prediction_states`` is what a client keeps of an evaluation message in order to predict, ``states_from_checkpoint`` the same from the
    server's checkpoint, ``predictor`` the module that it makes of either. ``example_weights`` is for reports only: from
    the strategy's state in a checkpoint, a partition and features (rows, width), the weights (rows,) in [0, 1] that the
    strategy gives such examples for that client; None where it weights none.
    """

    train: ClientFn
    evaluate: ClientFn
    prediction_states: Callable[[Workload, Message, ClientContext], ModelStates] = from_message
    states_from_checkpoint: Callable[[Workload, Mapping[str, Any], int, Config], ModelStates] = from_checkpoint
    predictor: Callable[[Workload, ModelStates], nn.Module] = full_model
    example_weights: Callable[[Mapping[str, Any], int, torch.Tensor], torch.Tensor | None] = no_example_weights


@dataclass(frozen=True)
class StrategySpec:
    """What the registry knows of a strategy.

    Attributes
    ----------
    options
        Dataclass of its options, as they appear under its name in a preset.
    server
        Makes the server half of a run.
    client
        The client half.
    needs_client_labels
        Clients train on the workload's loss, labels included.
    baseline
        What others are compared with where nothing else is asked for.
    is_upper_bound
        True for the supervised upper bound; tables then report the fraction of the gap to it that each strategy closes.
    comparison_overrides
        Options of its own section that differ where it is compared with other strategies.
    aggregation
        The rule by which it combines whole models, where the strategy is nothing else.
    name
        Prefix of its options where it is named by import path; empty: the module's name.
    metrics, phases
        Declarations of what the strategy reports and of the phases that it names, see :mod:`fedlab.metrics`.
    """

    options: type
    server: Callable[[Workload, Config, Progress], ServerStrategy]
    client: ClientFunctions
    needs_client_labels: bool = False
    baseline: bool = False
    is_upper_bound: bool = False
    comparison_overrides: Overrides = field(default_factory=dict)
    aggregation: Any = None
    name: str = ""
    metrics: tuple[Metric, ...] = ()
    phases: tuple[Phase, ...] = ()


def arrays_of(record: RecordDict, name: str = ARRAYS) -> dict[str, torch.Tensor]:
    """Tensors of one named ArrayRecord."""
    value = record[name]
    assert isinstance(value, ArrayRecord)
    return dict(value.to_torch_state_dict())


def round_of(message: Message) -> int:
    """The round that a message belongs to."""
    config = message.content[CONFIG]
    assert isinstance(config, ConfigRecord)
    value = config[ROUND]
    assert isinstance(value, int)
    return value


def is_final(server_round: int, rounds: int, config: ConfigRecord) -> bool:
    """Whether a run ends with this round: it is the last that was asked for, or the budget is spent."""
    return server_round == rounds or bool(config.get(FINAL, False))


def client_metrics(reply: Message) -> dict[str, float]:
    """Plain floats of a reply's metrics."""
    metrics = reply.content[METRICS]
    assert isinstance(metrics, MetricRecord)
    return {key: float(value) for key, value in metrics.items() if isinstance(value, int | float)}


def drop_none(**values: float | None) -> dict[str, float]:
    """The values that were measured: one that was not is left out, never made up."""
    return {name: value for name, value in values.items() if value is not None}


def metrics_record(metrics: Mapping[str, float], examples: int) -> MetricRecord:
    """Metrics with the number of examples behind them, which is their weight in a mean."""
    return MetricRecord({**metrics, EXAMPLES: examples})


def load(model: nn.Module, state: Mapping[str, torch.Tensor], device: torch.device) -> nn.Module:
    """The model with the given state on a device.

    Raises
    ------
    IncompatibleWeightsError
        When the state is another model's, as that of a checkpoint made with other options.
    """
    own = model.state_dict()
    foreign = sorted(
        name
        for name in own.keys() | state.keys()
        if name not in own or name not in state or own[name].shape != state[name].shape
    )
    if foreign:
        raise IncompatibleWeightsError(
            f"these weights are of another model than {type(model).__name__}: {len(foreign)} arrays do not fit, the "
            f"first is {foreign[0]!r}; use the workload and the options that they were trained with"
        )
    model.load_state_dict(dict(state))
    return model.to(device)


def client_dataset(workload: Workload, context: ClientContext, split: str) -> ArrayDataset:
    """The examples of the client that the context belongs to."""
    return workload.data(context.partition, split)


def partition_by_node(grid: Grid) -> dict[int, int]:
    """Connected node to partition, in the order of partitions."""
    assert isinstance(grid, PartitionGrid)
    return {node: grid.partition_of[node] for node in grid.get_node_ids()}


def evaluate(workload: Workload, message: Message, context: ClientContext) -> RecordDict:
    """Client half of testing: the workload's metrics of the global model on the client's own test data."""
    device = context.device
    model = load(workload.model(), arrays_of(message.content), device)
    data = client_dataset(workload, context, "test")
    return RecordDict({METRICS: metrics_record(workload.evaluate(model, data), len(data))})
