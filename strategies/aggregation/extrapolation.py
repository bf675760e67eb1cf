"""FedExP: the server goes beyond the clients' mean, the further the more their changes differ.

**Source**: Jhunjhunwala et al., FedExP: Speeding Up Federated Averaging via Extrapolation, ICLR 2023, algorithm 1,
equation 7. With D_i = w - w_i the change of client i, p_i its share of the weights and D the sum of p_i D_i:

    eta = max(1, sum of p_i ||D_i||^2 / (2 (||D||^2 + epsilon)));   w <- w - eta D

Equal changes give eta = 1, which is FedAvg. Reference: github.com/Divyansh03/FedExP, whose epsilon for CIFAR is the
default. A client that is absent in a round is no part of either sum.

**Departures**: (1) p_i is by examples, as FedAvg's and in the authors' code; the paper's formula has 1 / M; (2)
batch-norm statistics take the mean: they are no part of D and are not extrapolated; (3) the model that is tested is w
of the round, where the paper tests the mean of the last two rounds', because w oscillates; (4) epsilon does not decay;
the authors' code multiplies it with 0.998^2 a round, and with the number of clients.

**Metrics**: ``extrapolation``: eta of the last round.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedlab.config.sections import PositiveFloat
from fedlab.strategies.aggregation.rule import AggregationSpec, ClientUpdate, WeightedMean


@dataclass(frozen=True)
class ExtrapolationOptions:
    """FedExP's one option."""

    epsilon: PositiveFloat = Field(1e-3, description="added to the squared norm of the mean change; large: FedAvg")


class FedExP(WeightedMean[ExtrapolationOptions]):
    """w <- w - eta D for trainable arrays, the weighted mean for the others."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.eta = 0.0  # of the last round

    def begin(self, current: Mapping[str, Tensor]) -> None:
        """Begin a round with empty sums."""
        super().begin(current)
        self.squares = 0.0  # sum of weight ||D_i||^2

    def add_floats(self, update: ClientUpdate, weight: float) -> None:
        """Add weight w_i and weight ||D_i||^2 to the sums."""
        super().add_floats(update, weight)
        self.squares += weight * self._squared_change(update.arrays)

    def aggregate_floats(self, server_round: int, total: float) -> dict[str, Tensor]:
        """Return w - eta D, and the mean of what is not trainable."""
        mean = self.mean(total)
        squared = self._squared_change(mean)
        self.eta = max(1.0, self.squares / total / (2 * (squared + self.options.epsilon)))
        beyond = {name: torch.lerp(self.current[name], mean[name], self.eta) for name in self._trained(mean)}
        return mean if self.eta == 1 else {**mean, **beyond}

    def _squared_change(self, arrays: Mapping[str, Tensor]) -> float:
        """Return ||w - x||^2 over the trainable arrays x, in float64."""
        changes = [(arrays[name] - self.current[name]).double().square().sum() for name in self._trained(arrays)]
        return float(torch.stack(changes).sum())

    def _trained(self, arrays: Mapping[str, Tensor]) -> list[str]:
        return [name for name in arrays if name in self.trainable]

    def metrics(self) -> dict[str, float]:
        """Return eta, after a first round."""
        return {"extrapolation": self.eta} if self.eta else {}


FEDEXP = AggregationSpec(ExtrapolationOptions, FedExP)
