"""Methods of adaptation, naively federated: in every round clients adapt the global model and the server averages.

A round: the server takes its source steps, on the same batches as ``source_only``; each client adapts the G of the
averaged (EMA) model, with the batch norms that it had last (FedBN), as the method says; the server averages all but the
batch norms, weighted by examples, and continues from there. Its own batch norms stay those of the source.

**Source**: the method's; McMahan et al., AISTATS 2017; Li et al., FedBN, ICLR 2021. A method's steps are those of one
round; by default a client takes as many in five rounds as it would alone after the last.

**Metrics**: as FedAvg, each client with its own batch norms; ``loss`` is the server's source loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedlab.config.schema import Config
from fedlab.config.sections import Overrides
from fedlab.models.feature_classifier import features_of, head_of
from fedlab.strategies import aggregation as aggregations
from fedlab.strategies import fedbn
from fedlab.strategies.alternating import Alternating
from fedlab.strategies.client_adaptation import adacontrast, shot
from fedlab.strategies.client_adaptation.spec import AdaptationSpec, Client
from fedlab.strategies.client_adaptation.wrapper import FEATURES, AdaptingServer, views_of
from fedlab.strategies.protocol import (
    CLIENT_STEPS,
    ClientContext,
    ClientFunctions,
    StrategySpec,
    arrays_of,
    client_dataset,
    evaluate,
    loaded_model,
    tensor_record,
)
from fedlab.strategies.source_only import PHASES
from fedlab.training import Progress
from fedlab.workload import Workload


class FederatedAdaptation(Alternating):
    """Server side: source steps in turn with clients that adapt, each with batch norms of its own."""

    def __init__(self, workload: Workload, config: Config, progress: Progress) -> None:
        super().__init__(workload, config, progress, required=[])
        self.clients = fedbn.ClientNorms(workload)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Run the round's source steps, and return the averaged model with each client's batch norms."""
        self.loss = self.trainer.train(server_round, self.trainer.options.steps, "server")
        latest = tensor_record(self.trainer.average.state_dict())
        self.updates.send(latest, config)
        return self.clients.broadcast(grid, MessageType.TRAIN, server_round, latest, config)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Store the clients' batch norms, and continue from the mean of all else."""
        new = self.updates.aggregate(map(self.clients.store, replies), server_round)
        new = {**new, **{name: self.updates.sent[name] for name in self.clients.names}}
        self._continue_from(new)
        return tensor_record(new), None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return for each client the global arrays with its own batch norms."""
        return self.clients.broadcast(grid, MessageType.EVALUATE, server_round, arrays, config)

    def state(self) -> dict[str, Any]:
        """Return the state of the server's training, and the clients' batch norms."""
        return {**super().state(), "norms": self.clients.norms}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the server's training and the clients' batch norms."""
        super().restore(state)
        self.clients.norms = dict(state["norms"])


def train(method: AdaptationSpec, workload: Workload, message: Message, context: ClientContext) -> RecordDict:
    """Adapt the model that was sent, and return it."""
    model = loaded_model(workload, arrays_of(message.content), context.device).eval()
    data = client_dataset(workload, context, "train")
    client = Client(features_of(model), head_of(model), data, *views_of(workload), context.device, context.progress)
    adapted = method.adapt(client, context.config.strategy).features
    own: dict[str, Tensor] = {FEATURES + name: tensor for name, tensor in adapted.state_dict().items()}
    return aggregations.make_reply(workload, message, context, {**model.state_dict(), **own}, {}, data)


def federated(method: AdaptationSpec, defaults: Overrides) -> StrategySpec:
    """Return the strategy in which clients adapt in every round, with the method's options in its own section."""
    answer: Callable[[Workload, Message, ClientContext], RecordDict] = partial(train, method)
    return StrategySpec(
        method.options,
        AdaptingServer(FederatedAdaptation),
        ClientFunctions(answer, evaluate, states_from_checkpoint=fedbn.states_from_checkpoint),
        defaults=defaults,
        ignores=CLIENT_STEPS,
        phases=PHASES,
    )


SHOT = federated(shot.METHOD, {"fed_shot.epochs": 6.0})
ADACONTRAST = federated(adacontrast.METHOD, {"fed_adacontrast.steps": 48})
