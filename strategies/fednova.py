"""FedNova: clients that take different numbers of local steps, averaged as if they had taken the same.

**Source**: Wang et al., Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization, NeurIPS
2020, equation 6 and section 4.1. A client that takes tau_i steps of SGD with momentum rho moves by eta times a sum of
gradients whose weights add up to |a_i| = (tau_i - rho (1 - rho^tau_i) / (1 - rho)) / (1 - rho), for rho = 0 that is
tau_i. With p_i its fraction of the examples and x - y_i its change: x <- x - sum(p_i |a_i|) sum(p_i (x - y_i) / |a_i|).

**Options**: ``client.epochs`` is 1 unless asked otherwise, so that clients take different numbers of steps; with
``client.steps`` they take the same, which is FedAvg. rho is ``client.momentum``.

**Departures**: (1) batches are drawn with replacement, and ``client.epochs`` counts them as passes over a client's
examples; (2) batch-norm statistics take the mean, integer counters the maximum. With equal steps this is FedAvg.

**Metrics**: as FedAvg; ``steps``: sum of p_i |a_i|.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from flwr.app import ArrayRecord, Message, MetricRecord
from pydantic.dataclasses import dataclass

from fedlab.config.schema import Config
from fedlab.strategies import aggregation, fedavg
from fedlab.strategies.protocol import SERVER_STEPS, StrategySpec, tensor_record
from fedlab.training import Progress, effective_steps
from fedlab.workload import Workload


@dataclass(frozen=True)
class Options:
    """FedNova has no options of its own."""


class FedNova(fedavg.FedAvg):
    """Server side: the normalized mean."""

    def __init__(self, workload: Workload, config: Config, progress: Progress) -> None:
        fedavg.require_plain_sgd(config)
        self.training = config.client
        super().__init__(workload, config, progress)
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
                effective = effective_steps(self.training.local_steps(one.examples), self.training.momentum)
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


SPEC: StrategySpec = StrategySpec(
    Options,
    FedNova,
    fedavg.clients(),
    needs_client_labels=True,
    defaults={"client.epochs": 1.0},
    ignores=SERVER_STEPS,
)
