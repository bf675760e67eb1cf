"""FedAvg: clients train the whole model on the workload's own loss, which mostly takes labels; the server averages.

**Source**: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017,
algorithm 1. The server half is Flower's own, and so is every other rule by which it may put models together:
``strategies/aggregation`` has them by name, and each is a strategy, see :func:`entry`.

**Departures**: (1) clients take a fixed number of steps on batches drawn with replacement instead of epochs; (2)
local optimiser SGD with momentum 0.9, or Adam, fresh each round, and with ``client.average`` the moving average of
its weights is sent, as Ho et al. (2020) draw from theirs; (3) with ``server.pretrain_steps`` > 0 the server
first trains the initial model on data of its own; (4) counters take the largest, see ``strategies/aggregation``.

**Metrics**: ``loss`` is the mean local training loss; the workload's own metrics come from each client's test data.
What a rule measured itself is a metric of the server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from torch import Tensor, nn

from fedlab.config.schema import ClientTraining, Core, Flat, ServerTraining, build
from fedlab.data.dataset import ArrayDataset
from fedlab.errors import ConfigError
from fedlab.strategies import aggregation as aggregations
from fedlab.strategies import validation
from fedlab.strategies.protocol import (
    ARRAYS,
    CONFIG,
    EXAMPLES,
    METRICS,
    MOMENTUM,
    ClientHalf,
    Entry,
    arrays_of,
    client_metrics,
    evaluate,
    known,
    load,
    own_data,
    round_of,
)
from fedlab.strategies.source_only import SourceTrainer
from fedlab.training import Progress, annealed, follow, optimise, pick_device
from fedlab.workload import Workload, lacking

Beside = Callable[[nn.Module, list[Tensor]], Tensor]  # model, its weights at the start -> a scalar


class FedAvg(FlowerFedAvg):
    """Server half: Flower's messages to all, an initial model of the workload, and a rule that aggregates.

    Parameters
    ----------
    aggregation
        Name of the rule.
    labelled
        Whether clients have what the workload's loss takes.
    """

    def __init__(
        self,
        workload: Workload,
        flat: Flat,
        progress: Progress,
        aggregation: str = "fedavg",
        *,
        labelled: bool = True,
    ) -> None:
        super().__init__(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
        self.workload, self.flat, self.progress = workload, flat, progress
        self.norm_limit = build(Core, "", flat).norm_limit
        self.rule = aggregations.make(aggregation, workload, flat, labelled=labelled)
        steps = build(ClientTraining, "client", flat).steps
        self.measures = {EXAMPLES, *(["loss"] if steps else []), *self.rule.measures}
        self.optional: set[str] = set()  # measures that a client may leave out
        self.sent: dict[str, Tensor] = {}

    def initialise(self) -> ArrayRecord:
        """A fresh model, trained on the server's data for ``server.pretrain_steps``."""
        if not build(ServerTraining, "server", self.flat).pretrain_steps:
            return ArrayRecord(self.workload.model().state_dict())
        trainer = SourceTrainer(self.workload, self.flat, self.progress)
        trainer.pretrain()
        return ArrayRecord(trainer.average.state_dict())

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Flower's messages, with what the rule asks for; what was sent is what replies must look like."""
        self.sent = arrays_of(RecordDict({ARRAYS: arrays}))
        config.update(self.rule.asks())
        return super().configure_train(server_round, arrays, config, grid)

    def check(self, reply: Message) -> None:
        """Refuse a reply that is no model like the one that was sent."""
        validation.arrays(reply.content, ARRAYS, self.expected(reply), self.norm_limit)
        found = client_metrics(reply).keys()
        if (
            set(reply.content) != {ARRAYS, METRICS, CONFIG}
            or not self.measures - self.optional <= found <= self.measures
        ):
            came = sorted(reply.content), sorted(client_metrics(reply))
            raise validation.Refused(f"its records and metrics are {came}; expected a model and {self.measures}")
        if reason := self.rule.doubt(client_metrics(reply)):
            raise validation.Refused(reason)

    def expected(self, reply: Message) -> dict[str, Tensor]:
        """What a reply's arrays must look like: the whole model."""
        return self.sent

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The rule's new arrays."""
        given = aggregations.contributions(replies)
        return ArrayRecord(self.rule.aggregate(self.sent, given, server_round)), None

    def metrics(self) -> dict[str, float]:
        """What the rule measured."""
        return self.rule.metrics()

    def notes(self) -> list[dict[str, Any]]:
        """Nothing to tell."""
        return []

    def state(self) -> dict[str, Any]:
        """What the rule remembers."""
        return self.rule.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take it back."""
        self.rule.restore(state)


def train(workload: Workload, message: Message, context: Context, beside: Beside | None = None) -> RecordDict:
    """Client half: local SGD from the global arrays on the client's own data.

    Returns
    -------
    RecordDict
        ``arrays``: the whole local model; ``metrics``: mean training loss and the number of examples.
    """
    data = own_data(workload, context, "train")
    model, mean = local_sgd(workload, message, context, data, beside)
    return aggregations.answer(workload, message, context, model.state_dict(), known(loss=mean), data)


def local_sgd(
    workload: Workload,
    message: Message,
    context: Context,
    data: ArrayDataset,
    beside: Beside | None = None,
    *,
    steps: int | None = None,
    momentum: float = MOMENTUM,
) -> tuple[nn.Module, float | None]:
    """The model that was sent after local steps on the workload's loss, or its average over them, and the mean of that.

    Parameters
    ----------
    beside
        A further loss, of the model and its weights at the start.
    steps
        How many; None: the knob ``client.steps``.

    Raises
    ------
    ConfigError
        When the examples lack what the loss takes.
    """
    flat = context.run_config
    core, knobs = build(Core, "", flat), build(ClientTraining, "client", flat)
    device, rate = pick_device(core.device), knobs.learning_rate
    rate *= annealed(knobs.anneal, round_of(message), core.rounds)
    model = load(workload.model(), arrays_of(message.content), device).train()
    start = [weight.detach().clone() for weight in model.parameters()]
    if missing := lacking(workload, data):
        raise ConfigError(
            "this strategy trains on a client's own labels, and this client's training data has none"
            if missing == ["y"]
            else f"this client's training data lacks {', '.join(missing)}, which the workload's loss takes"
        )

    def loss() -> Tensor:
        batch = {name: column.to(device) for name, column in data.sample_batch(knobs.batch).items()}
        value = workload.loss(model, batch)
        return value + beside(model, start) if beside else value

    optimiser = OPTIMISERS[knobs.optimiser](model.parameters(), rate, momentum)
    steps = knobs.steps if steps is None else steps
    average = deepcopy(model) if knobs.average else model
    after = partial(follow, average, model, knobs.average) if knobs.average else None
    return average, optimise(loss, optimiser, steps, name="local training", clip=knobs.clip, after_step=after)


def plain_sgd(flat: Flat) -> None:
    """Refuse another local optimiser, for strategies whose server works out what SGD did.

    Raises
    ------
    ConfigError
        When ``client.optimiser``, ``client.clip``, ``client.anneal`` or ``client.average`` ask for anything else.
    """
    knobs = build(ClientTraining, "client", flat)
    if knobs.optimiser != "sgd" or knobs.clip or knobs.anneal != 1 or knobs.average:
        raise ConfigError(
            f"strategy {build(Core, '', flat).strategy!r} reckons with plain SGD of one step size on its clients, and "
            f"got client.optimiser={knobs.optimiser}, client.clip={knobs.clip:g}, client.anneal={knobs.anneal:g} and "
            f"client.average={knobs.average:g}; set them to sgd, 0, 1 and 0, or take fedavg or fedprox"
        )


OPTIMISERS: Mapping[str, Callable[[Iterable[nn.Parameter], float, float], torch.optim.Optimizer]] = {
    "sgd": lambda weights, rate, momentum: torch.optim.SGD(weights, rate, momentum=momentum),
    "adam": lambda weights, rate, momentum: torch.optim.Adam(weights, rate),
}


def entry(aggregation: str) -> Entry:
    """The line of the table of strategies that a rule makes: labelled clients train, this rule aggregates."""
    line = aggregations.find(aggregation)
    server = partial(FedAvg, aggregation=aggregation)
    return Entry(line.summary, line.knobs, server, ClientHalf(train, evaluate), labelled=True)
