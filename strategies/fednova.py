"""FedNova: clients that take different numbers of local steps, averaged as if they had taken the same.

**Source**: Wang et al., Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization, NeurIPS
2020, equation 6 and section 4.1. A client that takes tau_i steps of SGD with momentum rho moves by eta times a sum of
gradients whose weights add up to |a_i| = (tau_i - rho (1 - rho^tau_i) / (1 - rho)) / (1 - rho), for rho = 0 that is
tau_i. With p_i its fraction of the examples and x - y_i its change: x <- x - sum(p_i |a_i|) sum(p_i (x - y_i) / |a_i|).

**Departures**: (1) batches are drawn with replacement, and ``local_epochs`` counts them as passes over a client's
examples; (2) batch-norm statistics take the mean, integer counters the maximum. With equal steps this is FedAvg.

**Metrics**: as FedAvg; ``steps``: sum of p_i |a_i|.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from pydantic import Field
from pydantic.dataclasses import dataclass

from fedlab.config.schema import ClientConfig, Config
from fedlab.strategies import aggregation, fedavg
from fedlab.strategies.protocol import (
    MOMENTUM,
    ClientContext,
    ClientFunctions,
    StrategySpec,
    client_dataset,
    drop_none,
    evaluate,
    tensor_record,
)
from fedlab.training import Progress
from fedlab.workload import Workload


@dataclass(frozen=True)
class Options:
    """FedNova's options."""

    local_epochs: float = Field(
        1.0, ge=0.0, allow_inf_nan=False, description="local passes over a client's examples; 0: client.steps for all"
    )
    momentum: float = Field(MOMENTUM, ge=0.0, lt=1.0, description="momentum of local SGD (rho)")


class FedNova(fedavg.FedAvg):
    """Server side: the normalized mean."""

    def __init__(self, workload: Workload, config: Config, progress: Progress) -> None:
        fedavg.require_plain_sgd(config)
        self.options, self.training = config.strategy, config.client
        super().__init__(workload, config, progress, required=["loss"] if self.options.local_epochs else None)
        self.effective = 0.0

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the arrays of equation 6; a client's number of steps follows from that of its examples."""
        sent, scaled = self.updates.sent, 0.0
        changes = {name: torch.zeros_like(sent[name], dtype=torch.float64) for name in self.rule.trainable}
        total = 0.0

        def counted() -> Iterator[aggregation.ClientUpdate]:
            nonlocal scaled, total
            for one in aggregation.client_updates(replies):
                weight = self.rule.weight(one)
                effective = weight_of_steps(
                    local_steps(one.examples, self.options, self.training), self.options.momentum
                )
                for name, change in changes.items():
                    change.add_(sent[name].double() - one.arrays[name].double(), alpha=weight / effective)
                scaled, total = scaled + weight * effective, total + weight
                yield one

        new = self.rule.aggregate(sent, counted(), server_round)
        self.effective = scaled / total
        if self.effective:
            for name, change in changes.items():
                new[name] = (sent[name] - self.effective * change / total).to(new[name].dtype)
        return tensor_record(new, copy=False), None

    def metrics(self) -> dict[str, float]:
        """Return the effective number of steps, sum of p_i |a_i|."""
        return {"steps": self.effective} if self.effective else {}


def local_steps(examples: int, options: Options, training: ClientConfig) -> int:
    """Return tau_i, the number of local steps of a client with so many examples."""
    return math.ceil(options.local_epochs * examples / training.batch_size) if options.local_epochs else training.steps


def weight_of_steps(steps: int, momentum: float) -> float:
    """Return |a_i|, the sum of the weights that SGD with momentum gives to the gradients of its steps."""
    return (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)


def train(workload: Workload, message: Message, context: ClientContext) -> RecordDict:
    """Run tau_i local steps; the reply is FedAvg's."""
    config, data = context.config, client_dataset(workload, context, "train")
    options = config.strategy
    steps = local_steps(len(data), options, config.client)
    model, mean = fedavg.local_training(workload, message, context, data, steps=steps, momentum=options.momentum)
    return aggregation.make_reply(workload, message, context, model.state_dict(), drop_none(loss=mean), data)


SPEC: StrategySpec = StrategySpec(
    Options,
    FedNova,
    ClientFunctions(train, evaluate),
    needs_client_labels=True,
)
