"""FedDyn: a term in each client's loss, updated every round, lets clients' optima agree with that of their sum.

**Source**: Acar et al., Federated Learning Based on Dynamic Regularization, ICLR 2021, algorithm 1. With w the global
weights and m clients, client k minimizes its loss - <g_k, v> + alpha / 2 ||v - w||^2 from v = w, and g_k <- g_k -
alpha (v_k - w). The server: h <- h - alpha / m sum over the round's clients of (v_k - w); w <- mean(v_k) - h / alpha.
Reference: github.com/alpemreacar/FedDyn, whose alpha for CIFAR-10 is the default.

**State of a client**: g_k, an estimate of its gradient; h is a sum over clients and lives on the server. **An absent
client** keeps g_k, and adds nothing to h, in which the m clients of the whole run count.

**Departures**: (1) batch-norm statistics take the mean by examples, integer counters the maximum; (2) the linear term
is written <g_k, v - w>, which ``loss`` includes; (3) a client whose reply the server does not use has updated its g_k
all the same; (4) those of FedAvg.

**Metrics**: as FedAvg; ``h``: the norm of h.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from typing import Any

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedlab.config.schema import Config
from fedlab.config.sections import PositiveFloat
from fedlab.strategies import aggregation, fedavg, local_training, validation
from fedlab.strategies.local_training import LocalWork, Tensors, Trained
from fedlab.strategies.protocol import (
    SERVER_STEPS,
    ClientContext,
    StrategySpec,
    arrays_of,
    round_of,
    tensor_record,
)
from fedlab.training import Progress
from fedlab.workload import Workload, model_template

GRADIENT = "gradient"  # g_k, in the client's state


@dataclass(frozen=True)
class Options:
    """FedDyn's options."""

    alpha: PositiveFloat = Field(0.01, description="weight of the dynamic regularizer (alpha)")


class FedDyn(fedavg.FedAvg):
    """Server side: h, and the mean of the clients' weights moved against it."""

    def __init__(self, workload: Workload, config: Config, progress: Progress) -> None:
        super().__init__(workload, config, progress)
        self.alpha: float = config.strategy.alpha
        self.clients = len(config.clients)  # m
        self.trainable = sorted(self.rule.trainable)
        self.h: dict[str, Tensor] = {}

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the mean of the clients' weights less h / alpha, with the new h."""
        sent, count = self.updates.sent, 0
        step = {name: torch.zeros_like(sent[name]) for name in self.trainable}  # sum of v_k - w

        def counted() -> Iterator[aggregation.ClientUpdate]:
            nonlocal count
            for one in aggregation.client_updates(replies):
                for name in self.trainable:
                    step[name] += one.arrays[name] - sent[name]
                count += 1
                yield one

        new = self.rule.aggregate(sent, counted(), server_round)
        for name in self.trainable:
            moved = step[name] * (self.alpha / self.clients)
            self.h[name] = self.h[name] - moved if name in self.h else -moved
            new[name] = sent[name] + step[name] / count - self.h[name] / self.alpha
        return tensor_record(new, copy=False), None

    def metrics(self) -> dict[str, float]:
        """Return the Euclidean norm of h, after a first round."""
        return {"h": validation.norm(self.h)} if self.h else {}

    def state(self) -> dict[str, Any]:
        """Return h by name."""
        return {"h": dict(self.h)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore h, the server's sum."""
        self.h = dict(state["h"])


@plain_dataclass(frozen=True)
class DynamicRegularizer:
    """The function alpha / 2 ||v - w||^2 - <g_k, v - w> of weights v and start w, with g_k in ``extra``."""

    alpha: float

    def __call__(self, weights: Tensors, start: Tensors, extra: Tensors) -> Tensor:
        """Return the term, a scalar."""
        moves = {name: weights[name] - start[name] for name in weights}
        return torch.stack(
            [self.alpha / 2 * move.square().sum() - (extra[name] * move).sum() for name, move in moves.items()]
        ).sum()


def prepare(workload: Workload, message: Message, context: ClientContext) -> LocalWork:
    """Return FedAvg's local training with the regularizer in its loss."""
    work = local_training.prepare(workload, message, context)
    own = context.state.load(round_of(message))
    gradient = {
        name: own[GRADIENT][name] if own else torch.zeros_like(weight)
        for name, weight in model_template(workload).named_parameters()
    }
    return replace(work, penalty=DynamicRegularizer(context.config.strategy.alpha), extra=gradient)


def reply(
    workload: Workload, message: Message, context: ClientContext, work: LocalWork, trained: Trained
) -> RecordDict:
    """Update g_k, and return the model."""
    sent, alpha = arrays_of(message.content), context.config.strategy.alpha
    gradient = {
        name: old - alpha * (trained.state[name].to(old) - sent[name].to(old)) for name, old in work.extra.items()
    }
    context.state.save(round_of(message), {GRADIENT: gradient})
    return fedavg.reply(workload, message, context, work, trained)


SPEC: StrategySpec = StrategySpec(
    Options,
    FedDyn,
    fedavg.clients(prepare, reply),
    needs_client_labels=True,
    client_state=True,
    ignores=SERVER_STEPS,
)
