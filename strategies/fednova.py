"""FedNova: clients that take different numbers of local steps, averaged as if they had taken the same.

**Source**: Wang et al., Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization, NeurIPS
2020, equation 6 and section 4.1. A client that takes tau_i steps of SGD with momentum rho moves by eta times a sum of
gradients whose weights add up to |a_i| = (tau_i - rho (1 - rho^tau_i) / (1 - rho)) / (1 - rho), for rho = 0 that is
tau_i. With p_i its fraction of the examples and x - y_i its change: x <- x - sum(p_i |a_i|) sum(p_i (x - y_i) / |a_i|).

**Departures**: (1) batches are drawn with replacement, and ``epochs`` counts them as passes over a client's examples;
(2) batch-norm statistics take the mean, integer counters the maximum. With equal steps this is FedAvg.

**Metrics**: as FedAvg; ``steps``: sum of p_i |a_i|.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from pydantic import Field
from pydantic.dataclasses import dataclass

from fedlab.config.schema import ClientTraining, Flat, build
from fedlab.strategies import aggregation, fedavg
from fedlab.strategies.protocol import MOMENTUM, ClientFunctions, StrategySpec, client_dataset, drop_none, evaluate
from fedlab.training import Progress
from fedlab.workload import Workload


@dataclass(frozen=True)
class Knobs:
    """FedNova's options."""

    epochs: float = Field(
        1.0, ge=0.0, allow_inf_nan=False, description="local passes over a client's examples; 0: client.steps for all"
    )
    momentum: float = Field(MOMENTUM, ge=0.0, lt=1.0, description="momentum of local SGD (rho)")


class FedNova(fedavg.FedAvg):
    """Server side: the normalized mean."""

    def __init__(self, workload: Workload, flat: Flat, progress: Progress) -> None:
        fedavg.require_plain_sgd(flat)
        self.knobs, self.training = build(Knobs, "fednova", flat), build(ClientTraining, "client", flat)
        super().__init__(workload, flat, progress, required=["loss"] if self.knobs.epochs else None)
        self.effective = 0.0

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the arrays of equation 6; a client's number of steps follows from that of its examples."""
        updates, sent = aggregation.client_updates(replies), self.updates.sent
        new, total = self.rule.aggregate(sent, updates, server_round), sum(one.examples for one in updates)
        fractions = [one.examples / total for one in updates]
        weights = [
            weight_of_steps(local_steps(one.examples, self.knobs, self.training), self.knobs.momentum)
            for one in updates
        ]
        self.effective = sum(fraction * weight for fraction, weight in zip(fractions, weights, strict=True))
        if self.effective:
            for name in self.rule.trainable:
                x = sent[name].double()
                change = torch.zeros_like(x)
                for fraction, weight, one in zip(fractions, weights, updates, strict=True):
                    change += fraction / weight * (x - one.arrays[name].double())
                new[name] = (x - self.effective * change).to(new[name].dtype)
        return ArrayRecord(new), None

    def metrics(self) -> dict[str, float]:
        """Return the effective number of steps, sum of p_i |a_i|."""
        return {"steps": self.effective} if self.effective else {}


def local_steps(examples: int, knobs: Knobs, training: ClientTraining) -> int:
    """Return tau_i, the number of local steps of a client with so many examples."""
    return math.ceil(knobs.epochs * examples / training.batch) if knobs.epochs else training.steps


def weight_of_steps(steps: int, momentum: float) -> float:
    """Return |a_i|, the sum of the weights that SGD with momentum gives to the gradients of its steps."""
    return (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)


def train(workload: Workload, message: Message, context: Context) -> RecordDict:
    """Take tau_i local steps; the reply is FedAvg's."""
    flat, data = context.run_config, client_dataset(workload, context, "train")
    knobs = build(Knobs, "fednova", flat)
    steps = local_steps(len(data), knobs, build(ClientTraining, "client", flat))
    model, mean = fedavg.local_training(workload, message, context, data, steps=steps, momentum=knobs.momentum)
    return aggregation.make_reply(workload, message, context, model.state_dict(), drop_none(loss=mean), data)


SPEC: StrategySpec = StrategySpec(
    "FedAvg for clients that take different numbers of steps (Wang 2020)",
    Knobs,
    FedNova,
    ClientFunctions(train, evaluate),
    needs_client_labels=True,
)
