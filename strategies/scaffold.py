"""SCAFFOLD: control variates take the drift of clients with different data out of their local steps.

**Source**: Karimireddy et al., SCAFFOLD: Stochastic Controlled Averaging for Federated Learning, ICML 2020, algorithm
1, option II. With x the global weights, y_i a client's after K steps of size eta_l: y_i <- y_i - eta_l (g_i(y_i) -
c_i + c); c_i' = c_i - c + (x - y_i) / (K eta_l); x <- x + eta_g mean(y_i - x); c <- c + sum(c_i' - c_i) / N.

**Departures**: (1) clients keep no state of the run: variates live on the server, which sends c - c_i and finds c_i'
from y_i itself, so a client uploads no more than in FedAvg; (2) local SGD has no momentum, or option II would
estimate another gradient, see below; (3) batch-norm
statistics take the mean, integer counters the maximum; (4) a client's gradient correction is written as a loss, <c -
c_i, y - x>, which ``loss`` includes.

**Step size**: ``client.learning_rate`` and ``client.momentum`` describe the SGD that other strategies run. SCAFFOLD's
steps have no momentum, and the size with which a constant gradient moves a client as far as that SGD does in K steps:
K eta_l = ``client.learning_rate`` |a|, |a| as in FedNova. With many steps eta_l comes near ``client.learning_rate`` /
(1 - ``client.momentum``). So a preset or a comparison needs no step size of its own for SCAFFOLD;
``client.momentum=0`` makes eta_l ``client.learning_rate`` itself.

**Metrics**: as FedAvg; ``variate``: the norm of c.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedlab.config.schema import Config
from fedlab.config.sections import PositiveFloat
from fedlab.config.training_options import ClientConfig
from fedlab.errors import ConfigError
from fedlab.strategies import aggregation, fedavg, local_training, validation
from fedlab.strategies.base import Records, broadcast
from fedlab.strategies.local_training import LocalWork, Tensors
from fedlab.strategies.protocol import (
    SERVER_STEPS,
    ClientContext,
    StrategySpec,
    arrays_of,
    partition_by_node,
    tensor_record,
)
from fedlab.training import Progress, effective_steps
from fedlab.workload import Workload, model_template

CORRECTION = "correction"  # c - c_i


@dataclass(frozen=True)
class Options:
    """SCAFFOLD's options."""

    learning_rate: PositiveFloat = Field(1.0, description="the server's step size (eta_g)")


class Scaffold(fedavg.FedAvg):
    """Server side: the control variates of all clients, and lines 14 to 17 of the algorithm."""

    def __init__(self, workload: Workload, config: Config, progress: Progress) -> None:
        fedavg.require_plain_sgd(config)
        super().__init__(workload, config, progress)
        self.options = config.strategy
        if not config.client.trains:
            raise ConfigError("option 'client.steps' is 0, and scaffold divides by it; ask for at least one step")
        self.clients = len(config.clients)  # N
        self.trainable = sorted(self.rule.trainable)
        self.variate: dict[str, Tensor] = {}  # c
        self.variates: dict[int, dict[str, Tensor]] = {}  # c_i by partition
        self.partition_of: Mapping[int, int] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return for each client x and its own c - c_i."""
        self.updates.send(arrays, config)
        self.partition_of = partition_by_node(grid)
        if not self.variate:
            self.variate = self._zeros()
        return broadcast(grid, MessageType.TRAIN, server_round, arrays, config, per_client=self._correction)

    def _correction(self, partition: int) -> Records:
        own = self.variates.get(partition, self._zeros())
        return {CORRECTION: tensor_record({name: self.variate[name] - own[name] for name in self.trainable})}

    def _zeros(self) -> dict[str, Tensor]:
        return {name: torch.zeros_like(self.updates.sent[name]) for name in self.trainable}

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Update x, c and the c_i of the clients that answered; the c_i of others stay."""
        sent, count = self.updates.sent, 0
        training = self.config.client.at_round(server_round, self.config.run.rounds)
        moved, step = self._zeros(), self._zeros()  # sums of c_i' - c_i and of y_i - x

        def counted() -> Iterator[aggregation.ClientUpdate]:
            nonlocal count
            for reply in replies:
                one = aggregation.client_update(reply)
                self._update_variate(self.partition_of[reply.metadata.src_node_id], one, moved, training)
                for name in self.trainable:
                    step[name] += one.arrays[name] - sent[name]
                count += 1
                yield one

        new = self.rule.aggregate(sent, counted(), server_round)
        for name in self.trainable:
            new[name] = sent[name] + self.options.learning_rate * (step[name] / count)
        self.variate = {name: self.variate[name] + moved[name] / self.clients for name in self.trainable}
        return tensor_record(new, copy=False), None

    def _update_variate(
        self, partition: int, one: aggregation.ClientUpdate, moved: Mapping[str, Tensor], training: ClientConfig
    ) -> None:
        """Set c_i of a client from its weights y_i, and add its change to ``moved``."""
        sent, own, after = self.updates.sent, self.variates.get(partition, self._zeros()), {}
        steps = training.local_steps(one.examples)
        span = steps * step_size(training, steps)  # K eta_l
        for name in self.trainable:
            after[name] = own[name] - self.variate[name] + (sent[name] - one.arrays[name]) / span
            moved[name].add_(after[name] - own[name])
        self.variates[partition] = after

    def metrics(self) -> dict[str, float]:
        """Return the Euclidean norm of c."""
        return {"variate": validation.norm(self.variate)} if self.variate else {}

    def state(self) -> dict[str, Any]:
        """Return c, and c_i by partition."""
        return {"variate": self.variate, "variates": self.variates}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore all control variates."""
        self.variate, self.variates = dict(state["variate"]), dict(state["variates"])


def step_size(training: ClientConfig, steps: int) -> float:
    """Return eta_l, the size of each of K local steps."""
    return training.learning_rate * (effective_steps(steps, training.momentum) / steps)


def along_correction(weights: Tensors, start: Tensors, extra: Tensors) -> Tensor:
    """Return <c - c_i, y - x>, a scalar whose gradient is the correction."""
    return torch.stack([(extra[name] * (weights[name] - start[name])).sum() for name in weights]).sum()


def prepare(workload: Workload, message: Message, context: ClientContext) -> LocalWork:
    """Return K local steps along g_i(y) - c_i + c."""
    work = local_training.prepare(workload, message, context)
    rate = step_size(context.config.client, work.steps)
    sent = arrays_of(message.content, CORRECTION)
    correction = {name: sent[name].to(weight) for name, weight in model_template(workload).named_parameters()}
    plain = replace(work.optimizer, learning_rate=rate, momentum=0.0)
    return replace(work, optimizer=plain, penalty=along_correction, extra=correction)


SPEC: StrategySpec = StrategySpec(
    Options,
    Scaffold,
    fedavg.clients(prepare),
    needs_client_labels=True,
    ignores=SERVER_STEPS,
)
