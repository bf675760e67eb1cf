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
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.common.constant import PARTITION_ID_KEY
from flwr.serverapp import Grid
from torch import nn

from fedlab.comm.grid import RosterGrid
from fedlab.config.schema import Core, Flat, build
from fedlab.data.dataset import Examples
from fedlab.errors import ForeignWeightsError
from fedlab.metrics import Metric, Phase
from fedlab.training import Progress, pick_device
from fedlab.workload import Workload

MOMENTUM = 0.9  # of clients' local SGD
ARRAYS, CONFIG, METRICS, ROUND, EXAMPLES = "arrays", "config", "metrics", "server-round", "num-examples"
FINAL = "final-round"  # in the config of a round's test, when a budget ends the run with it

Local = Callable[[Workload, Message, Context], RecordDict]
States = dict[str, Mapping[str, torch.Tensor]]  # record name -> state of a module


class ServerHalf(Protocol):
    """The server half of a strategy: Flower's questions, and what starting and resuming need."""

    def initialise(self) -> ArrayRecord:
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
        """Raise :class:`fedlab.strategies.validation.Refused` if a training reply may not be used."""
        ...

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Messages to the clients that evaluate."""
        ...

    def metrics(self) -> dict[str, float]:
        """What the server itself measured in the last round."""
        ...

    def notes(self) -> list[dict[str, Any]]:
        """What happened in the last round that is no number: plain JSON, each with a ``note`` that says it in words."""
        ...

    def state(self) -> dict[str, Any]:
        """All that lives from round to round beside the arrays: tensors, plain numbers, lists and dicts of them."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take a state back, so that the next round gives the same bits as if nothing had happened."""
        ...


def sent_model(workload: Workload, message: Message, context: Context) -> States:
    """What predicts on a client once it has been tested: the model that was sent."""
    return {ARRAYS: arrays_of(message.content)}


def saved_model(workload: Workload, checkpoint: Mapping[str, Any], partition: int, flat: Flat) -> States:
    """What predicts on a client, from the server's checkpoint: the same."""
    return {ARRAYS: checkpoint[ARRAYS]}


def no_example_weights(state: Mapping[str, Any], partition: int, features: torch.Tensor) -> torch.Tensor | None:
    """Return None: the strategy does not weight examples."""
    return None


def whole_model(workload: Workload, states: States) -> nn.Module:
    """Inputs ``x`` to logits (batch, classes)."""
    return load(workload.model(), states[ARRAYS], torch.device("cpu")).eval()


@dataclass(frozen=True)
class ClientHalf:
    """The client half of a strategy: pure functions of workload, message and context.

    ``states`` is what a client keeps of an evaluation message in order to predict, ``recalled`` the same from the
    server's checkpoint, ``predictor`` the module that it makes of either. ``example_weights`` is for reports only: from
    the strategy's state in a checkpoint, a partition and features (rows, width), the weights (rows,) in [0, 1] that the
    strategy gives such examples for that client; None where it weights none.
    """

    train: Local
    evaluate: Local
    states: Callable[[Workload, Message, Context], States] = sent_model
    recalled: Callable[[Workload, Mapping[str, Any], int, Flat], States] = saved_model
    predictor: Callable[[Workload, States], nn.Module] = whole_model
    example_weights: Callable[[Mapping[str, Any], int, torch.Tensor], torch.Tensor | None] = no_example_weights


@dataclass(frozen=True)
class Entry:
    """One line of the table of strategies.

    Attributes
    ----------
    labelled
        Clients train on the workload's loss, labels included.
    baseline
        What others are compared with where nothing else is asked for.
    ceiling
        The upper bound: what share of the gap up to it others close is asked where it stands beside them.
    compared
        Knobs of its own section that differ where it stands beside other strategies.
    metrics, phases
        Declarations of what the strategy reports and of the phases that it names, see :mod:`fedlab.metrics`.
    """

    summary: str
    knobs: type
    server: Callable[[Workload, Mapping[str, bool | int | float | str], Progress], ServerHalf]
    client: ClientHalf
    labelled: bool = False
    baseline: bool = False
    ceiling: bool = False
    compared: Flat = field(default_factory=dict)
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


def known(**values: float | None) -> dict[str, float]:
    """The values that were measured: one that was not is left out, never made up."""
    return {name: value for name, value in values.items() if value is not None}


def metrics_record(metrics: Mapping[str, float], examples: int) -> MetricRecord:
    """Metrics with the number of examples behind them, which is their weight in a mean."""
    return MetricRecord({**metrics, EXAMPLES: examples})


def load(model: nn.Module, state: Mapping[str, torch.Tensor], device: torch.device) -> nn.Module:
    """The model with the given state on a device.

    Raises
    ------
    ForeignWeightsError
        When the state is another model's, as that of a checkpoint made with other knobs.
    """
    own = model.state_dict()
    foreign = sorted(
        name
        for name in own.keys() | state.keys()
        if name not in own or name not in state or own[name].shape != state[name].shape
    )
    if foreign:
        raise ForeignWeightsError(
            f"these weights are of another model than {type(model).__name__}: {len(foreign)} arrays do not fit, the "
            f"first is {foreign[0]!r}; use the workload and the knobs that they were trained with"
        )
    model.load_state_dict(dict(state))
    return model.to(device)


def own_data(workload: Workload, context: Context, split: str) -> Examples:
    """The examples of the client that the context belongs to."""
    return workload.data(int(context.node_config[PARTITION_ID_KEY]), split)


def partition_by_node(grid: Grid) -> dict[int, int]:
    """Connected node to partition, in the order of partitions."""
    assert isinstance(grid, RosterGrid)
    return {node: grid.partition_of[node] for node in grid.get_node_ids()}


def evaluate(workload: Workload, message: Message, context: Context) -> RecordDict:
    """Client half of testing: the workload's metrics of the global model on the client's own test data."""
    device = pick_device(build(Core, "", context.run_config).device)
    model = load(workload.model(), arrays_of(message.content), device)
    data = own_data(workload, context, "test")
    return RecordDict({METRICS: metrics_record(workload.evaluate(model, data), len(data))})
