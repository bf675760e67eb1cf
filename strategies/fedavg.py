"""FedAvg: clients train the whole model on the workload's own loss, which mostly takes labels; the server averages.

**Source**: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017,
algorithm 1. The mean is one aggregation rule of several: ``strategies/aggregation`` has them by name, and each is a
strategy of its own, see :func:`spec_of`.

**Departures**: (1) batches are drawn with replacement, in a fixed number of steps (``client.steps``) or as many as make
``client.epochs`` passes over a client's examples; (2) the local optimizer is SGD with momentum, or Adam, fresh each
round, and with ``client.ema_decay`` the moving average of
its weights is sent, as the average from which Ho et al. (2020) sample; (3) with ``server.pretrain_steps`` > 0 the
server first trains the initial model on its own data; (4) integer counters take the maximum over clients, see
``strategies/aggregation``.

**Metrics**: ``loss`` is the mean local training loss; the workload's own metrics come from each client's test data.
The rule's own metrics are metrics of the server.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedlab.comm.stacked_replies import StackedContents
from fedlab.config.schema import Config
from fedlab.errors import ConfigError
from fedlab.privacy.accounting import PrivacyAccount
from fedlab.strategies import aggregation as aggregations
from fedlab.strategies.aggregation import AggregationSpec
from fedlab.strategies.base import BaseStrategy
from fedlab.strategies.local_training import LocalWork, Prepare, Reply, Trained, prepare, run
from fedlab.strategies.model_updates import ModelUpdates
from fedlab.strategies.protocol import (
    SERVER_STEPS,
    ClientContext,
    ClientFunctions,
    StrategySpec,
    drop_none,
    evaluate,
    tensor_record,
)
from fedlab.strategies.source_only import SourceTrainer
from fedlab.strategies.vectorized import ManyClients
from fedlab.strategies.whole_models import WholeModels
from fedlab.training import Progress
from fedlab.workload import Workload


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

    def weighed_by(self) -> Mapping[str, float]:
        """Return those that the rule reads."""
        return self.rule.weighed_by

    def privacy(self) -> PrivacyAccount | None:
        """Return the rule's account."""
        return self.rule.privacy()

    def state(self) -> dict[str, Any]:
        """Return the rule's state."""
        return self.rule.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the rule's state."""
        self.rule.restore(state)


def reply(
    workload: Workload, message: Message, context: ClientContext, work: LocalWork, trained: Trained
) -> RecordDict:
    """Return the client's answer after local training.

    Returns
    -------
    RecordDict
        ``arrays``: the whole local model; ``metrics``: mean training loss and the number of examples.
    """
    metrics = drop_none(loss=trained.loss)
    return aggregations.make_reply(workload, message, context, trained.state, metrics, work.data)


def replies(
    messages: Sequence[Message], works: Sequence[LocalWork], trained: Sequence[Trained]
) -> StackedContents | None:
    """Return what :func:`reply` returns for each of several clients, stacked; None where that cannot be."""
    losses = [one.loss for one in trained if one.loss is not None]
    if losses and len(losses) < len(trained):  # some took no step
        return None
    examples = [len(work.data) for work in works]
    metrics = {"loss": losses} if losses else {}
    return aggregations.make_replies(messages, [one.state for one in trained], metrics, examples)


def train(
    workload: Workload, message: Message, context: ClientContext, prepare: Prepare = prepare, reply: Reply = reply
) -> RecordDict:
    """Train the global model on the client's own data.

    Parameters
    ----------
    prepare, reply
        Return the local training and the answer after it, for strategies that change one of them.
    """
    work = prepare(workload, message, context)
    return reply(workload, message, context, work, run(workload, work))


_REPLY = reply  # for where a parameter has its name


def clients(prepare: Prepare = prepare, reply: Reply = reply) -> ClientFunctions:
    """Return the client side of a strategy that changes nothing but the local training and the answer after it."""
    train_many = ManyClients(WholeModels(prepare, reply, replies if reply is _REPLY else None))
    return ClientFunctions(partial(train, prepare=prepare, reply=reply), evaluate, train_many=train_many)


def require_plain_sgd(config: Config) -> None:
    """Refuse any local optimizer but SGD, for strategies whose server infers gradients from the clients' models.

    Raises
    ------
    ConfigError
        When ``client.optimizer``, ``client.max_grad_norm`` or ``client.ema_decay`` ask for anything else.
    """
    options = config.client
    if options.optimizer != "sgd" or options.max_grad_norm or options.ema_decay:
        raise ConfigError(
            f"strategy {config.run.strategy!r} assumes plain SGD on clients, and "
            f"got client.optimizer={options.optimizer}, client.max_grad_norm={options.max_grad_norm:g} and "
            f"client.ema_decay={options.ema_decay:g}; set them to sgd, 0 and 0, or use fedavg or fedprox"
        )


def spec_of(found: object, what: str) -> StrategySpec:
    """Return the spec of what the registry found: a strategy, or the one that an aggregation rule makes.

    A rule alone is FedAvg with another mean: clients train on their labels, the rule combines their models.

    Raises
    ------
    ConfigError
        When it is neither.
    """
    if isinstance(found, AggregationSpec):
        return StrategySpec(
            found.options,
            FedAvg,
            clients(),
            needs_client_labels=True,
            ignores=SERVER_STEPS,
            aggregation=found,
            name=found.name,
        )
    if not isinstance(found, StrategySpec):
        fields = ", ".join(("options", "server", "client"))
        raise ConfigError(
            f"{what} is a {type(found).__name__}; a StrategySpec with {fields} is expected, or an AggregationSpec "
            "(see docs/how-to/own-strategy.md, or `fedlab new strategy NAME`)"
        )
    return found
