"""Types of a strategy's server and client sides, and the records of their messages.

A message to a client carries an ArrayRecord ``arrays`` (the model's state by name) and a ConfigRecord ``config`` with
``server-round``; a reply carries a MetricRecord ``metrics`` with ``num-examples`` and whatever arrays the strategy
needs. Further records are documented in the strategy's module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from torch import nn

from fedlab.comm.grid import PartitionGrid
from fedlab.comm.stacked_replies import StackedContent, stacked_content
from fedlab.comm.tensors import tensor_record as tensor_record
from fedlab.comm.tensors import tensors_of
from fedlab.config.lr_schedules import SCHEDULE_FIELDS
from fedlab.config.schema import Config
from fedlab.config.sections import Overrides
from fedlab.data.dataset import ArrayDataset
from fedlab.errors import IncompatibleWeightsError, RunError
from fedlab.metrics import Metric, Phase
from fedlab.models.copying import copy_with_state
from fedlab.privacy.accounting import PrivacyAccount, Release
from fedlab.runs.client_state import NO_STATE, ClientState
from fedlab.training import Progress, null_progress, resolve_device
from fedlab.vectorized.memory import ClientMemory
from fedlab.workload import Workload, blank_model, model_shapes, model_template

ARRAYS, CONFIG, METRICS, ROUND, EXAMPLES = "arrays", "config", "metrics", "server-round", "num-examples"
NOTE = "note"  # in the config of a reply: a sentence for the server's log
FINAL = "final-round"  # in the config of a message of a round with which the run ends before the last
# Options of a round's steps, which strategies without such steps ignore; and of clients that train in another way than
# a whole model with the optimizer that is asked for. How much a round does (steps, batches, rates) is not among them:
# one such setting for several strategies is usual.
SERVER_BATCHES, CLIENT_BATCHES = frozenset({"server.accumulate_steps"}), frozenset({"client.accumulate_steps"})
SERVER_MODELS = frozenset({"server.weight_decay", "server.max_grad_norm", "server.ema_decay"})
CLIENT_OPTIMIZER = frozenset({"client.optimizer", "client.ema_decay"})
CLIENT_SGD = CLIENT_OPTIMIZER | {"client.max_grad_norm"}
CLIENT_MODELS = CLIENT_SGD | {"client.momentum", "client.weight_decay"}
SERVER_STEPS = SERVER_BATCHES | SERVER_MODELS | {f"server.{name}" for name in SCHEDULE_FIELDS}
CLIENT_STEPS = CLIENT_BATCHES | CLIENT_MODELS | {f"client.{name}" for name in SCHEDULE_FIELDS}
RUN, CHECKPOINTS = "run", "checkpoints"  # to clients that keep a state: identifier of the run, rounds it can go back to


@dataclass(frozen=True)
class ClientContext:
    """The client of a message.

    Attributes
    ----------
    partition
        Its partition of the data.
    config
        Configuration of the run, with the settings of this machine merged into it.
    state
        Its own state, where the strategy declares one.
    progress
        Reports steps of its training: phase, steps done, steps in all.
    """

    partition: int
    config: Config
    state: ClientState = NO_STATE
    progress: Progress = null_progress

    @property
    def device(self) -> torch.device:
        """Torch device that this client computes on."""
        return resolve_device(self.config.run.device)


ClientFn = Callable[[Workload, Message, ClientContext], RecordDict]
ModelStates = dict[str, Mapping[str, torch.Tensor]]  # record name -> state of a module


class ManyClientsFn(Protocol):
    """The training of many clients at once, and the memory that it takes."""

    def __call__(
        self, workload: Workload, messages: Sequence[Message], contexts: Sequence[ClientContext]
    ) -> list[RecordDict | StackedContent | Exception]:
        """Return each client's reply, or the exception that it raised; replies may be stacked."""
        ...

    def memory(self, workload: Workload, message: Message, context: ClientContext) -> ClientMemory:
        """Return the memory of so many clients like this one."""
        ...


class ServerStrategy(Protocol):
    """Server side of a strategy: the methods that a round calls, and those that starting and resuming need.

    :class:`fedlab.strategies.base.BaseStrategy` has defaults.
    """

    def initialize(self) -> ArrayRecord:
        """Return the arrays before round 1; any pre-training on the server happens here."""
        ...

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the messages to the clients that train in this round; none if no client does."""
        ...

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the new arrays, from the clients' valid replies in the order of their partitions."""
        ...

    def check(self, reply: Message) -> None:
        """Raise :class:`fedlab.strategies.validation.InvalidUpdate` if a training reply may not be used."""
        ...

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the messages to the clients that evaluate."""
        ...

    def metrics(self) -> dict[str, float]:
        """Return the server's own metrics of the last round."""
        ...

    def events(self) -> list[dict[str, Any]]:
        """Return the events of the last round that are not numbers: plain JSON, each with a sentence ``note``."""
        ...

    def weighed_by(self) -> Mapping[str, float]:
        """Return the metrics by which a client weighs in training, each with the value at which it weighs nothing.

        The number of examples is not among them. Where clients limit each other, these numbers are limited, too.
        """
        ...

    def privacy(self) -> PrivacyAccount | None:
        """Return the account of what differential privacy has cost so far; None where nothing is noised."""
        ...

    def state(self) -> dict[str, Any]:
        """Return everything that lives from round to round beside the arrays: tensors, numbers, lists and dicts."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore a state, so that the next round gives the same bits as in an uninterrupted run.

        Also of a strategy that is in the middle of a round, which then begins again.
        """
        ...


def from_message(workload: Workload, message: Message, context: ClientContext) -> ModelStates:
    """Return the arrays that a client predicts with after its evaluation: those of the message."""
    return {ARRAYS: arrays_of(message.content)}


def from_checkpoint(workload: Workload, checkpoint: Mapping[str, Any], partition: int, config: Config) -> ModelStates:
    """Return the arrays that a client predicts with, from the server's checkpoint: the global arrays."""
    return {ARRAYS: checkpoint[ARRAYS]}


def no_example_weights(state: Mapping[str, Any], partition: int, features: torch.Tensor) -> torch.Tensor | None:
    """Return None: the strategy does not weight examples."""
    return None


def full_model(workload: Workload, states: ModelStates) -> nn.Module:
    """Return the workload's model with these arrays, which maps inputs ``x`` to logits (batch, classes)."""
    return load(workload.model(), states[ARRAYS], torch.device("cpu")).eval()


@dataclass(frozen=True)
class ClientFunctions:
    """Client side of a strategy: pure functions of workload, message and context.

    Attributes
    ----------
    train, evaluate
        Answer a training or an evaluation message.
    prediction_states
        Returns the arrays that a client stores after an evaluation message, in order to predict with them.
    states_from_checkpoint
        Returns the same from the server's checkpoint, for one partition; its entry ``client`` is that client's own
        state, None where it has none on this machine.
    predictor
        Returns the module that predicts, from either.
    example_weights
        For reports only: from the strategy's state in a checkpoint, a partition and features (rows, width), the weights
        (rows,) in [0, 1] that the strategy gives such examples for that client; None where it weights none.
    train_many
        Answers the training messages of many clients at once, to rounding as ``train`` does one by one; it opens each
        client's random stream itself. None where the strategy cannot.
    """

    train: ClientFn
    evaluate: ClientFn
    prediction_states: Callable[[Workload, Message, ClientContext], ModelStates] = from_message
    states_from_checkpoint: Callable[[Workload, Mapping[str, Any], int, Config], ModelStates] = from_checkpoint
    predictor: Callable[[Workload, ModelStates], nn.Module] = full_model
    example_weights: Callable[[Mapping[str, Any], int, torch.Tensor], torch.Tensor | None] = no_example_weights
    train_many: ManyClientsFn | None = None


def no_release(config: Config) -> Release | None:
    """Return None: clients add no noise to what they send."""
    return None


@dataclass(frozen=True)
class StrategySpec:
    """Entry of a strategy in the registry.

    Attributes
    ----------
    options
        Dataclass of its options, as they appear under its name in a preset.
    server
        Makes the server side of a run.
    client
        The client side.
    needs_client_labels
        True if clients train on the workload's own loss, labels included.
    baseline
        True for the strategy that others are compared with by default.
    is_upper_bound
        True for the supervised upper bound; tables then report the fraction of the gap to it that each strategy closes.
    comparison_overrides
        Options of its own section that differ in comparisons with other strategies.
    defaults
        Defaults of options of other sections that differ with this strategy, by key. A preset made for the strategy
        goes over them; they go over a preset made for another one, whose numbers are meant for that.
    depends_on_rounds
        True if a round depends on the number of rounds, as a schedule does: a run that is made longer is then another.
    aggregation
        Spec of the aggregation rule, if the strategy is FedAvg with another rule.
    adaptation
        Method by which clients adapt after the last round, if they do
        (:class:`fedlab.strategies.client_adaptation.spec.AdaptationSpec`).
    client_state
        True if clients keep a state of their own between rounds (``ClientContext.state``); each saves it whenever it
        trains.
    final_phase
        Declared phase that the clients' training is shown as in the last round, if they do more than in the others.
    ignores
        Options of the sections ``server`` and ``client`` that have no effect with this strategy, by key; a user who
        sets one is told so.
    upload
        What leaves a client in training: "nothing", "head" (one layer, and statistics of features) or "model". A
        client's owner allows one of them.
    release
        What a client releases in each training with noise of its own, by configuration: a
        :class:`fedlab.privacy.accounting.Release`, or None where it adds none.
    name
        Prefix of its options if it is given by import path; empty: the module's name.
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
    defaults: Overrides = field(default_factory=dict)
    depends_on_rounds: bool = False
    aggregation: Any = None
    adaptation: Any = None
    client_state: bool = False
    final_phase: str = "clients"
    ignores: frozenset[str] = frozenset()
    upload: Literal["nothing", "head", "model"] = "model"
    release: Callable[[Config], Release | None] = no_release
    name: str = ""
    metrics: tuple[Metric, ...] = ()
    phases: tuple[Phase, ...] = ()


def arrays_of(record: RecordDict, name: str = ARRAYS) -> dict[str, torch.Tensor]:
    """Return the tensors of one named ArrayRecord by name; others may read them too, so none is changed in place."""
    value = record[name]
    assert isinstance(value, ArrayRecord)
    return tensors_of(value)


def round_of(message: Message) -> int:
    """Return the round that a message belongs to."""
    config = message.content[CONFIG]
    assert isinstance(config, ConfigRecord)
    value = config[ROUND]
    assert isinstance(value, int)
    return value


def is_final(server_round: int, rounds: int, config: ConfigRecord) -> bool:
    """Return True if the run ends with this round: the last one, or an earlier one that was declared to be the last.

    In training it is known that a metric ends the run, and not yet that a budget does.
    """
    return server_round == rounds or bool(config.get(FINAL, False))


def client_metrics(reply: Message) -> dict[str, float]:
    """Return a reply's metrics as plain floats."""
    if (stacked := stacked_content(reply)) is not None:
        metrics = stacked.of.numbers(METRICS, stacked.row)
        return {key: float(value) for key, value in metrics.items()}
    record = reply.content[METRICS]
    assert isinstance(record, MetricRecord)
    return {key: float(value) for key, value in record.items() if isinstance(value, int | float)}


def drop_none(**values: float | None) -> dict[str, float]:
    """Return the values that are not None, by name."""
    return {name: value for name, value in values.items() if value is not None}


def metrics_record(metrics: Mapping[str, float], examples: int) -> MetricRecord:
    """Return the record of a reply's metrics, with the number of examples, its weight in a mean."""
    return MetricRecord({**metrics, EXAMPLES: examples})


def load(model: nn.Module, state: Mapping[str, torch.Tensor], device: torch.device) -> nn.Module:
    """Load a state into a model and return it on a device.

    Raises
    ------
    IncompatibleWeightsError
        When the state is of another model.
    """
    check_weights(model, state)
    model.load_state_dict(dict(state))
    return model.to(device)


def loaded_model(workload: Workload, state: Mapping[str, torch.Tensor], device: torch.device) -> nn.Module:
    """Return a model of the workload with a state, on a device: that of :func:`load`, in one copy where that can be.

    Raises
    ------
    IncompatibleWeightsError
        When the state is of another model.
    """
    check_state(workload, state)
    model = copy_with_state(model_template(workload), state)
    return load(blank_model(workload), state, device) if model is None else model.to(device)


def check_state(workload: Workload, state: Mapping[str, torch.Tensor]) -> None:
    """Validate that a state has the names and shapes of that of the workload's model.

    Raises
    ------
    IncompatibleWeightsError
        When the state is of another model.
    """
    _check_shapes(type(model_template(workload)).__name__, model_shapes(workload), state)


def check_weights(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Validate that a state has the names and shapes of a model's.

    Raises
    ------
    IncompatibleWeightsError
        When the state is of another model, for instance from a checkpoint made with other options.
    """
    _check_shapes(type(model).__name__, {name: own.shape for name, own in model.state_dict().items()}, state)


def _check_shapes(model: str, shapes: Mapping[str, torch.Size], state: Mapping[str, torch.Tensor]) -> None:
    if shapes.keys() == state.keys() and all(state[name].shape == shape for name, shape in shapes.items()):
        return
    foreign = sorted(
        name
        for name in shapes.keys() | state.keys()
        if name not in shapes or name not in state or shapes[name] != state[name].shape
    )
    raise IncompatibleWeightsError(
        f"these weights are of another model than {model}: {len(foreign)} arrays do not fit, the first is "
        f"{foreign[0]!r}; use the workload and the options that they were trained with"
    )


def client_dataset(workload: Workload, context: ClientContext, split: str) -> ArrayDataset:
    """Return the examples of the client that the context belongs to; ``split`` is "train" or "test".

    Raises
    ------
    DataError
        When the data is missing or damaged.
    """
    return workload.data(context.partition, split)


def partition_by_node(grid: Grid) -> dict[int, int]:
    """Return the partition of each connected node, in the order of partitions.

    Raises
    ------
    RunError
        When the grid is Flower's own, which knows nodes only.
    """
    if not isinstance(grid, PartitionGrid):
        raise RunError(
            f"strategies of fedlab address clients by partition, and a {type(grid).__name__} knows nodes only, so "
            "that they do not run in Strategy.start. In the pyproject.toml of your app name fedlab's own two apps and "
            "a preset, as docs/how-to/flower-apps.md shows"
        )
    return {node: grid.partition_of[node] for node in grid.get_node_ids()}


def evaluate(workload: Workload, message: Message, context: ClientContext) -> RecordDict:
    """Return the workload's metrics of the model that was sent, on the client's test data."""
    model = load(workload.model(), arrays_of(message.content), context.device)
    data = client_dataset(workload, context, "test")
    return RecordDict({METRICS: metrics_record(workload.evaluate(model, data), len(data))})
