"""Types of a strategy's server and client sides, and what both find here: records of messages and states of models.

The records are those of ``records.py``, the states those of ``model_states.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from fedlab.comm.grid import PartitionGrid
from fedlab.comm.tensors import tensor_record as tensor_record
from fedlab.config.lr_schedules import SCHEDULE_FIELDS
from fedlab.config.schema import Config
from fedlab.config.sections import Overrides
from fedlab.errors import RunError
from fedlab.metrics import Metric, Phase
from fedlab.privacy.accounting import PrivacyAccount, Release
from fedlab.strategies.client_functions import ClientContext as ClientContext
from fedlab.strategies.client_functions import ClientFn as ClientFn
from fedlab.strategies.client_functions import ClientFunctions as ClientFunctions
from fedlab.strategies.client_functions import ManyClientsFn as ManyClientsFn
from fedlab.strategies.client_functions import ModelStates as ModelStates
from fedlab.strategies.client_functions import client_dataset as client_dataset
from fedlab.strategies.client_functions import evaluate as evaluate
from fedlab.strategies.client_functions import from_checkpoint as from_checkpoint
from fedlab.strategies.client_functions import from_message as from_message
from fedlab.strategies.client_functions import full_model as full_model
from fedlab.strategies.client_functions import no_example_weights as no_example_weights
from fedlab.strategies.model_states import check_state as check_state
from fedlab.strategies.model_states import check_weights as check_weights
from fedlab.strategies.model_states import load as load
from fedlab.strategies.model_states import loaded_model as loaded_model
from fedlab.strategies.records import ARRAYS as ARRAYS
from fedlab.strategies.records import CHECKPOINTS as CHECKPOINTS
from fedlab.strategies.records import CONFIG as CONFIG
from fedlab.strategies.records import EXAMPLES as EXAMPLES
from fedlab.strategies.records import FINAL as FINAL
from fedlab.strategies.records import METRICS as METRICS
from fedlab.strategies.records import NOTE as NOTE
from fedlab.strategies.records import ROUND as ROUND
from fedlab.strategies.records import RUN as RUN
from fedlab.strategies.records import arrays_of as arrays_of
from fedlab.strategies.records import client_metrics as client_metrics
from fedlab.strategies.records import drop_none as drop_none
from fedlab.strategies.records import is_final as is_final
from fedlab.strategies.records import metrics_record as metrics_record
from fedlab.strategies.records import round_of as round_of
from fedlab.training import Progress
from fedlab.workload import Workload

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
