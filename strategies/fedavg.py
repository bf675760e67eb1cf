"""FedAvg: clients train the whole model on the workload's own loss, which mostly takes labels; the server averages.

**Source**: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017,
algorithm 1. The server half is Flower's own, and so is every other rule by which it may put models together:
``strategies/aggregation`` has them by name, and each is a strategy, see :func:`spec_of`.

**Departures**: (1) clients take a fixed number of steps on batches drawn with replacement instead of epochs; (2)
local optimiser SGD with momentum 0.9, or Adam, fresh each round, and with ``client.ema_decay`` the moving average of
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
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from torch import Tensor, nn

from fedlab.config.schema import Config
from fedlab.data.dataset import ArrayDataset
from fedlab.errors import ConfigError
from fedlab.strategies import aggregation as aggregations
from fedlab.strategies import validation
from fedlab.strategies.aggregation import AggregationSpec
from fedlab.strategies.protocol import (
    ARRAYS,
    CONFIG,
    EXAMPLES,
    METRICS,
    MOMENTUM,
    ClientContext,
    ClientFunctions,
    StrategySpec,
    arrays_of,
    client_dataset,
    client_metrics,
    drop_none,
    evaluate,
    load,
    round_of,
)
from fedlab.strategies.source_only import SourceTrainer
from fedlab.training import Progress, cosine_factor, ema_update, resolve_device, train_steps
from fedlab.workload import Workload, missing_columns

ExtraLoss = Callable[[nn.Module, list[Tensor]], Tensor]  # model, its weights at the start -> a scalar


class FedAvg(FlowerFedAvg):
    """Server half: Flower's messages to all, an initial model of the workload, and a rule that aggregates.

    Parameters
    ----------
    labelled
        Whether clients have what the workload's loss takes.
    """

    def __init__(
        self,
        workload: Workload,
        config: Config,
        progress: Progress,
        *,
        labelled: bool = True,
    ) -> None:
        super().__init__(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
        self.workload, self.config, self.progress = workload, config, progress
        self.norm_limit = config.comm.max_update_norm_ratio
        self.rule = aggregations.make(workload, config, labelled=labelled)
        steps = config.client.steps
        self.measures = {EXAMPLES, *(["loss"] if steps else []), *self.rule.expected_metrics}
        self.optional: set[str] = set()  # measures that a client may leave out
        self.sent: dict[str, Tensor] = {}

    def initialize(self) -> ArrayRecord:
        """A fresh model, trained on the server's data for ``server.pretrain_steps``."""
        if not self.config.server.pretrain_steps:
            return ArrayRecord(self.workload.model().state_dict())
        trainer = SourceTrainer(self.workload, self.config, self.progress)
        trainer.pretrain()
        return ArrayRecord(trainer.average.state_dict())

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Flower's messages, with what the rule asks for; what was sent is what replies must look like."""
        self.sent = arrays_of(RecordDict({ARRAYS: arrays}))
        config.update(self.rule.client_config())
        return super().configure_train(server_round, arrays, config, grid)

    def check(self, reply: Message) -> None:
        """Refuse a reply that is no model like the one that was sent."""
        validation.validate_arrays(reply.content, ARRAYS, self.expected(reply), self.norm_limit)
        found = client_metrics(reply).keys()
        if (
            set(reply.content) != {ARRAYS, METRICS, CONFIG}
            or not self.measures - self.optional <= found <= self.measures
        ):
            came = sorted(reply.content), sorted(client_metrics(reply))
            raise validation.InvalidUpdate(f"its records and metrics are {came}; expected a model and {self.measures}")
        if reason := self.rule.validate_metrics(client_metrics(reply)):
            raise validation.InvalidUpdate(reason)

    def expected(self, reply: Message) -> dict[str, Tensor]:
        """What a reply's arrays must look like: the whole model."""
        return self.sent

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The rule's new arrays."""
        updates = aggregations.client_updates(replies)
        return ArrayRecord(self.rule.aggregate(self.sent, updates, server_round)), None

    def metrics(self) -> dict[str, float]:
        """What the rule measured."""
        return self.rule.metrics()

    def events(self) -> list[dict[str, Any]]:
        """Nothing to tell."""
        return []

    def state(self) -> dict[str, Any]:
        """What the rule remembers."""
        return self.rule.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take it back."""
        self.rule.restore(state)


def train(workload: Workload, message: Message, context: ClientContext, extra_loss: ExtraLoss | None = None) -> RecordDict:
    """Client half: local SGD from the global arrays on the client's own data.

    Returns
    -------
    RecordDict
        ``validate_arrays``: the whole local model; ``metrics``: mean training loss and the number of examples.
    """
    data = client_dataset(workload, context, "train")
    model, mean = local_training(workload, message, context, data, extra_loss)
    return aggregations.make_reply(workload, message, context, model.state_dict(), drop_none(loss=mean), data)


def local_training(
    workload: Workload,
    message: Message,
    context: ClientContext,
    data: ArrayDataset,
    extra_loss: ExtraLoss | None = None,
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
        How many; None: the option ``client.steps``.

    Raises
    ------
    ConfigError
        When the examples lack what the loss takes.
    """
    config = context.config
    core, options = config.run, config.client
    device, rate = resolve_device(core.device), options.learning_rate
    rate *= cosine_factor(options.final_lr_fraction, round_of(message), core.rounds)
    model = load(workload.model(), arrays_of(message.content), device).train()
    start = [weight.detach().clone() for weight in model.parameters()]
    if missing := missing_columns(workload, data):
        raise ConfigError(
            "this strategy trains on a client's own labels, and this client's training data has none"
            if missing == ["y"]
            else f"this client's training data lacks {', '.join(missing)}, which the workload's loss takes"
        )

    def loss() -> Tensor:
        batch = {name: column.to(device) for name, column in data.sample_batch(options.batch_size).items()}
        value = workload.loss(model, batch)
        return value + extra_loss(model, start) if extra_loss else value

    optimiser = OPTIMIZERS[options.optimizer](model.parameters(), rate, momentum)
    steps = options.steps if steps is None else steps
    average = deepcopy(model) if options.ema_decay else model
    after = partial(ema_update, average, model, options.ema_decay) if options.ema_decay else None
    return average, train_steps(loss, optimiser, steps, name="local training", clip=options.max_grad_norm, after_step=after)


def require_plain_sgd(config: Config) -> None:
    """Refuse another local optimiser, for strategies whose server works out what SGD did.

    Raises
    ------
    ConfigError
        When ``client.optimizer``, ``client.max_grad_norm``, ``client.final_lr_fraction`` or ``client.ema_decay`` ask for anything else.
    """
    options = config.client
    if options.optimizer != "sgd" or options.max_grad_norm or options.final_lr_fraction != 1 or options.ema_decay:
        raise ConfigError(
            f"strategy {config.run.strategy!r} reckons with plain SGD of one step size on its clients, and "
            f"got client.optimizer={options.optimizer}, client.max_grad_norm={options.max_grad_norm:g}, client.final_lr_fraction={options.final_lr_fraction:g} "
            f"and client.ema_decay={options.ema_decay:g}; set them to sgd, 0, 1 and 0, or take fedavg or fedprox"
        )


OPTIMIZERS: Mapping[str, Callable[[Iterable[nn.Parameter], float, float], torch.optim.Optimizer]] = {
    "sgd": lambda weights, rate, momentum: torch.optim.SGD(weights, rate, momentum=momentum),
    "adam": lambda weights, rate, momentum: torch.optim.Adam(weights, rate),
}


def spec_of(found: object, what: str) -> StrategySpec:
    """Return the spec of what the registry found: a strategy, or the one that an aggregation rule makes.

    A rule alone is FedAvg with another mean: clients train on their labels, the rule combines their models.

    Raises
    ------
    ConfigError
        When it is neither.
    """
    if isinstance(found, AggregationSpec):
        clients = ClientFunctions(train, evaluate)
        return StrategySpec(found.options, FedAvg, clients, needs_client_labels=True, aggregation=found, name=found.name)
    if not isinstance(found, StrategySpec):
        fields = ", ".join(("options", "server", "client"))
        raise ConfigError(
            f"{what} is a {type(found).__name__}; a StrategySpec with {fields} is expected, or an AggregationSpec "
            "(see docs/how-to/own-strategy.md, or `fedlab new strategy NAME`)"
        )
    return found
