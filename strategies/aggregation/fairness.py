"""q-FedAvg: clients whose loss is high weigh more, so that their accuracies come closer together.

**Source**: Li et al., Fair Resource Allocation in Federated Learning, ICLR 2020, algorithm 2. The arithmetic is that
of Flower's class.

**Departures**: (1) each client counts once, as in Flower, where the paper samples clients by their examples: with q =
0 this is the plain mean, not FedAvg; (2) F_k(w) is the loss of the model that was sent, in evaluation mode on at most
1000 of a client's training examples: the paper's, not the training loss that Flower's documentation suggests; (3) L,
by which a change is taken for a gradient, is 1 / (steps x rate / (1 - momentum)) of local training, where the paper
has 1 / rate: over many local steps with momentum that makes gradients so large that the model hardly moves
(``lipschitz`` sets L); (4) only learned arrays go through the rule: a batch-norm statistic is no gradient, and its
change would count in the norms that shorten the step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flwr.serverapp import strategy as flower
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedlab.strategies.aggregation.client import START_LOSS
from fedlab.strategies.aggregation.rule import AggregationSpec, ClientUpdate, Rule, ask_flower, mean, record_of
from fedlab.strategies.protocol import MOMENTUM


@dataclass(frozen=True)
class FairOptions:
    """q-FedAvg's options."""

    q: float = Field(0.1, ge=0.0, allow_inf_nan=False, description="how much a high loss weighs; 0: the plain mean")
    lipschitz: float = Field(
        0.0, ge=0.0, allow_inf_nan=False, description="L, an inverse step size; 0: from the clients' steps and rate"
    )


class QFedAvg(Rule[FairOptions]):
    """w <- w - sum of F_k^q L (w - w_k) / sum of h_k."""

    expected_metrics = frozenset({START_LOSS})

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        local = self.config.client
        span = max(local.steps, 1) * local.learning_rate / (1 - MOMENTUM)
        rate = 1 / self.options.lipschitz if self.options.lipschitz else span
        self.flower = flower.QFedAvg(client_learning_rate=rate, q=self.options.q, train_loss_key=START_LOSS)

    def client_config(self) -> dict[str, bool | float]:
        """F_k(w)."""
        return {START_LOSS: True}

    def validate_metrics(self, metrics: Mapping[str, float]) -> str:
        """A loss below 0 has no power q."""
        loss = metrics[START_LOSS]
        return f"its loss before training is {loss:g}; q-FedAvg needs losses that are not negative" if loss < 0 else ""

    def aggregate_floats(
        self, current: Mapping[str, Tensor], updates: Sequence[ClientUpdate], names: Sequence[str], server_round: int
    ) -> dict[str, Tensor]:
        """Flower's class on what is learned, the mean on the rest."""
        learned = [name for name in names if name in self.trainable]
        self.flower.current_arrays = record_of(current, learned)
        rest = mean(updates, (name for name in names if name not in self.trainable), server_round)
        return {**ask_flower(self.flower, updates, learned, server_round, metric=START_LOSS), **rest}


QFEDAVG = AggregationSpec("clients with a high loss weigh more (Li 2020)", FairOptions, QFedAvg)
