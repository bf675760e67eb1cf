"""FedAvg: clients train the whole model on the workload's own loss, which mostly takes labels; the server averages.

**Source**: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017,
algorithm 1. The mean is one aggregation rule of several: ``strategies/aggregation`` has them by name, and each is a
strategy of its own, see :func:`spec_of`.

**Departures**: (1) clients take a fixed number of steps on batches drawn with replacement instead of epochs; (2) the
local optimizer is SGD with momentum 0.9, or Adam, fresh each round, and with ``client.ema_decay`` the moving average of
its weights is sent, as the average from which Ho et al. (2020) sample; (3) with ``server.pretrain_steps`` > 0 the
server first trains the initial model on its own data; (4) integer counters take the maximum over clients, see
``strategies/aggregation``.

**Metrics**: ``loss`` is the mean local training loss; the workload's own metrics come from each client's test data.
The rule's own metrics are metrics of the server.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from torch import Tensor, nn

from fedlab.config.schema import Config
from fedlab.data.dataset import ArrayDataset
from fedlab.errors import ConfigError
from fedlab.strategies import aggregation as aggregations
from fedlab.strategies.aggregation import AggregationSpec
from fedlab.strategies.base import BaseStrategy
from fedlab.strategies.model_updates import ModelUpdates
from fedlab.strategies.protocol import (
    MOMENTUM,
    ClientContext,
    ClientFunctions,
    StrategySpec,
    arrays_of,
    client_dataset,
    drop_none,
    evaluate,
    load,
    round_of,
    tensor_record,
)
from fedlab.strategies.source_only import SourceTrainer
from fedlab.training import Progress, cosine_factor, ema_update, resolve_device, train_steps
from fedlab.workload import Workload, missing_columns

ExtraLoss = Callable[[nn.Module, list[Tensor]], Tensor]  # model, its weights at the start -> a scalar


class FedAvg(BaseStrategy):
    """Server side: the global model to every client, and a rule that aggregates the clients' models.

    Parameters
    ----------
    labeled
        True if clients have everything that the workload's loss reads.
    required
        Metrics that a client must report, see :class:`fedlab.strategies.model_updates.ModelUpdates`.
    """

    def __init__(
        self,
        workload: Workload,
        config: Config,
        progress: Progress,
        *,
        labeled: bool = True,
        required: Collection[str] | None = None,
    ) -> None:
        self.workload, self.config, self.progress = workload, config, progress
        self.updates = ModelUpdates(workload, config, labeled=labeled, required=required)
        self.rule = self.updates.rule

    def initialize(self) -> ArrayRecord:
        """Return a fresh model, trained on the server's data for ``server.pretrain_steps``."""
        if not self.config.server.pretrain_steps:
            return tensor_record(self.workload.model().state_dict())
        trainer = SourceTrainer(self.workload, self.config, self.progress)
        trainer.pretrain()
        return tensor_record(trainer.average.state_dict())

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the global model for every client, with what the rule asks for."""
        self.updates.send(arrays, config)
        return super().configure_train(server_round, arrays, config, grid)

    def check(self, reply: Message) -> None:
        """Refuse a reply that is not a model like the one that was sent."""
        self.updates.check(reply)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the rule's new arrays."""
        return tensor_record(self.updates.aggregate(replies, server_round)), None

    def metrics(self) -> dict[str, float]:
        """Return the rule's own metrics."""
        return self.rule.metrics()

    def state(self) -> dict[str, Any]:
        """Return the rule's state."""
        return self.rule.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the rule's state."""
        self.rule.restore(state)


def train(
    workload: Workload, message: Message, context: ClientContext, extra_loss: ExtraLoss | None = None
) -> RecordDict:
    """Train the global model on the client's own data.

    Returns
    -------
    RecordDict
        ``arrays``: the whole local model; ``metrics``: mean training loss and the number of examples.
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
    """Train by local steps on the workload's loss from the model that was sent.

    Parameters
    ----------
    data
        ArrayDataset with every column that the loss reads.
    extra_loss
        A term to add to the loss: a function of the model and of its weights at the start.
    steps
        Number of steps; None: ``client.steps``.
    momentum
        Momentum of SGD.

    Returns
    -------
    tuple
        The trained model, or with ``client.ema_decay`` the moving average of its weights, and the mean loss over the
        steps (None without steps).

    Raises
    ------
    ConfigError
        When the examples lack a column that the loss reads.
    RunError
        When the loss is not finite.
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

    optimizer = OPTIMIZERS[options.optimizer](model.parameters(), rate, momentum)
    steps = options.steps if steps is None else steps
    average = deepcopy(model) if options.ema_decay else model
    after = partial(ema_update, average, model, options.ema_decay) if options.ema_decay else None
    mean = train_steps(
        loss, optimizer, steps, name="local training", max_grad_norm=options.max_grad_norm, after_step=after
    )
    return average, mean


def require_plain_sgd(config: Config) -> None:
    """Refuse any local optimizer but SGD, for strategies whose server infers gradients from the clients' models.

    Raises
    ------
    ConfigError
        When ``client.optimizer``, ``client.max_grad_norm``, ``client.final_lr_fraction`` or ``client.ema_decay`` ask
        for anything else.
    """
    options = config.client
    if options.optimizer != "sgd" or options.max_grad_norm or options.final_lr_fraction != 1 or options.ema_decay:
        raise ConfigError(
            f"strategy {config.run.strategy!r} assumes plain SGD with a constant step size on clients, and "
            f"got client.optimizer={options.optimizer}, client.max_grad_norm={options.max_grad_norm:g}, "
            f"client.final_lr_fraction={options.final_lr_fraction:g} and client.ema_decay={options.ema_decay:g}; "
            "set them to sgd, 0, 1 and 0, or use fedavg or fedprox"
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
        return StrategySpec(
            found.options, FedAvg, clients, needs_client_labels=True, aggregation=found, name=found.name
        )
    if not isinstance(found, StrategySpec):
        fields = ", ".join(("options", "server", "client"))
        raise ConfigError(
            f"{what} is a {type(found).__name__}; a StrategySpec with {fields} is expected, or an AggregationSpec "
            "(see docs/how-to/own-strategy.md, or `fedlab new strategy NAME`)"
        )
    return found
