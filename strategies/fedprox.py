"""FedProx: FedAvg with a proximal term that keeps clients near the global model.

**Source**: Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020, algorithm 2: a client minimizes
its loss + mu / 2 ||w - w_t||^2.

**Departures**: those of FedAvg; every client takes all of its steps, so there is no partial work to accept.

**Metrics**: as FedAvg; ``loss`` includes the proximal term.
"""

from __future__ import annotations

from dataclasses import dataclass as plain_dataclass
from dataclasses import replace

import torch
from flwr.app import Message
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedlab.strategies import fedavg, local_training
from fedlab.strategies.aggregation import Aggregation
from fedlab.strategies.local_training import LocalWork, Tensors
from fedlab.strategies.protocol import SERVER_STEPS, ClientContext, StrategySpec
from fedlab.workload import Workload


@dataclass(frozen=True)
class Options:
    """FedProx's options."""

    mu: float = Field(0.01, ge=0.0, allow_inf_nan=False, description="weight of the proximal term; 0 is FedAvg")
    aggregation: Aggregation = "fedavg"


@plain_dataclass(frozen=True)
class ProximalTerm:
    """The function mu / 2 ||w - w_t||^2 of weights and the weights at the start."""

    mu: float

    def __call__(self, weights: Tensors, start: Tensors, extra: Tensors) -> Tensor:
        """Return the term, a scalar."""
        return self.mu / 2 * torch.stack([(weights[name] - start[name]).square().sum() for name in weights]).sum()


def prepare(workload: Workload, message: Message, context: ClientContext) -> LocalWork:
    """Return FedAvg's local training with the proximal term in its loss."""
    work, mu = local_training.prepare(workload, message, context), context.config.strategy.mu
    return replace(work, penalty=ProximalTerm(mu)) if mu else work


SPEC: StrategySpec = StrategySpec(
    Options,
    fedavg.FedAvg,
    fedavg.clients(prepare),
    needs_client_labels=True,
    ignores=SERVER_STEPS,
)
