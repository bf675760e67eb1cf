"""q-FedAvg: clients whose loss is high weigh more, so that their accuracies come closer together.

**Source**: Li et al., Fair Resource Allocation in Federated Learning, ICLR 2020, algorithm 2. With F_k the loss of
client k at the model w that was sent, and w_k the model that it returns::

    g_k = L (w - w_k)
    D_k = F_k^q g_k
    h_k = q F_k^(q - 1) ||g_k||^2 + L F_k^q
    w  <- w - sum of D_k / sum of h_k

The tests compare with Flower's class of the same name.

**Departures**: (1) each client counts once, as in Flower, where the paper samples clients by their examples: with q =
0 this is the plain mean, not FedAvg; (2) F_k(w) is the loss of the model that was sent, in evaluation mode on at most
1000 of a client's training examples: the paper's, not the training loss that Flower's documentation suggests; (3) L,
by which a change is taken for a gradient, is 1 / (steps x rate / (1 - momentum)) of local training, where the paper
has 1 / rate: over many local steps with momentum that makes gradients so large that the model hardly moves
(``lipschitz`` sets L); (4) only trainable arrays go through the rule: a batch-norm statistic is no gradient, and its
change would count in the norms that shorten the step; (5) 1e-10 is added to F_k, as in Flower, so that a loss of 0 has
a power q - 1; (6) from Flower: ||g_k||^2 is summed in float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedlab.strategies.aggregation.client import START_LOSS
from fedlab.strategies.aggregation.rule import AggregationSpec, ClientUpdate, WeightedMean, accumulate

EPSILON = 1e-10  # added to a loss


@dataclass(frozen=True)
class FairOptions:
    """q-FedAvg's options."""

    q: float = Field(0.1, ge=0.0, allow_inf_nan=False, description="how much a high loss weighs; 0: the plain mean")
    lipschitz: float = Field(
        0.0, ge=0.0, allow_inf_nan=False, description="L, an inverse step size; 0: from the clients' steps and rate"
    )


class QFedAvg(WeightedMean[FairOptions]):
    """w <- w - sum of D_k / sum of h_k for trainable arrays, the weighted mean for the others."""

    expected_metrics = frozenset({START_LOSS})
    uses_weights = False  # but for batch-norm statistics
    weighed_by: ClassVar[Mapping[str, float]] = {START_LOSS: 0.0}

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.local = self.config.client

    def aggregate(
        self, current: Mapping[str, Tensor], updates: Iterable[ClientUpdate], server_round: int
    ) -> dict[str, Tensor]:
        """Return the next arrays; L is that of the round's learning rate."""
        self.local = self.config.client.at_round(server_round, self.config.run.rounds)
        return super().aggregate(current, updates, server_round)

    def lipschitz(self, examples: int) -> float:
        """Return L for a client with so many examples, on which its number of steps may depend."""
        span = max(self.local.local_steps(examples), 1) * self.local.learning_rate / (1 - self.local.momentum)
        return self.options.lipschitz or 1 / span

    def client_config(self) -> dict[str, bool | float]:
        """Return the request for F_k(w)."""
        return {START_LOSS: True}

    def validate_metrics(self, metrics: Mapping[str, float]) -> str:
        """Return a refusal of a loss below 0, which has no power q; empty if there is none."""
        loss = metrics[START_LOSS]
        return f"its loss before training is {loss:g}; q-FedAvg needs losses that are not negative" if loss < 0 else ""

    def begin(self, current: Mapping[str, Tensor]) -> None:
        """Begin a round with empty sums."""
        super().begin(current)
        self.deltas: dict[str, Tensor] = {}  # sum of D_k
        self.h = 0.0  # sum of h_k

    def add_floats(self, update: ClientUpdate, weight: float) -> None:
        """Add D_k and h_k, and the statistics to their mean."""
        q, lipschitz = self.options.q, self.lipschitz(update.examples)
        loss = update.metrics[START_LOSS] + EPSILON
        trainable = [name for name in self.floats if name in self.trainable]
        gradients = {name: lipschitz * (self.current[name] - update.arrays[name]) for name in trainable}
        squared_norm = sum(float(gradient.double().square().sum()) for gradient in gradients.values())
        accumulate(self.deltas, gradients, gradients, loss**q)
        self.h += q * loss ** (q - 1) * squared_norm + lipschitz * loss**q
        accumulate(self.sums, update.arrays, [name for name in self.floats if name not in gradients], weight)

    def step(self, mean: Mapping[str, Tensor], server_round: int) -> Mapping[str, Tensor]:
        """Return w - sum of D_k / sum of h_k."""
        return {name: self.current[name] - delta / self.h for name, delta in self.deltas.items()}


QFEDAVG = AggregationSpec(FairOptions, QFedAvg)
