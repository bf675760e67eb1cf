"""FedProx: FedAvg with a proximal term that keeps clients near the global model.

**Source**: Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020, algorithm 2: a client minimizes
its loss + mu / 2 ||w - w_t||^2.

**Departures**: those of FedAvg; every client takes the same number of steps, so there is no partial work to accept.

**Metrics**: as FedAvg; ``loss`` includes the proximal term.
"""

from __future__ import annotations

import torch
from flwr.app import Message, RecordDict
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from fedlab.strategies import fedavg
from fedlab.strategies.aggregation import Aggregation
from fedlab.strategies.protocol import ClientContext, ClientFunctions, StrategySpec, evaluate
from fedlab.workload import Workload


@dataclass(frozen=True)
class Options:
    """FedProx's options."""

    mu: float = Field(0.01, ge=0.0, allow_inf_nan=False, description="weight of the proximal term; 0 is FedAvg")
    aggregation: Aggregation = "fedavg"


def train(workload: Workload, message: Message, context: ClientContext) -> RecordDict:
    """Train on the loss + mu / 2 ||w - w_t||^2; the reply is FedAvg's."""
    mu: float = context.config.strategy.mu

    def term(model: nn.Module, start: list[Tensor]) -> Tensor:
        return mu / 2 * squared_distance(model, start)

    return fedavg.train(workload, message, context, term if mu else None)


def squared_distance(model: nn.Module, start: list[Tensor]) -> Tensor:
    """Return ||w - w_0||^2 over all parameters, a scalar."""
    pairs = zip(model.parameters(), start, strict=True)
    return torch.stack([(weight - origin).square().sum() for weight, origin in pairs]).sum()


SPEC: StrategySpec = StrategySpec(
    Options,
    fedavg.FedAvg,
    ClientFunctions(train, evaluate),
    needs_client_labels=True,
)
