"""Averaging, and the server as an optimiser: the clients' mean change is its pseudo-gradient.

**Source**: FedAvg: McMahan et al., AISTATS 2017. FedAvgM: Hsu et al., Measuring the Effects of Non-Identical Data
Distribution, 2019. FedAdagrad, FedAdam, FedYogi: Reddi et al., Adaptive Federated Optimization, ICLR 2021, algorithm
2. The arithmetic is that of Flower's classes.

**Departures**: (1) from Flower: only learned arrays go through the optimiser; batch-norm statistics take the weighted
mean, or a step could make a variance negative; (2) from Flower: defaults, since 0.1 a weight and round is more than a
weight of our networks; (3) from the paper, as Flower: FedAdam corrects its moments' bias, counting from round + 1;
moments start at 0, not at tau squared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy.fedopt import FedOpt
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedlab.config.sections import PositiveFloat
from fedlab.strategies.aggregation.rule import (
    AggregationSpec,
    Arrays,
    ClientUpdate,
    Rule,
    ask_flower,
    mean,
    record_of,
    to_numpy,
)


@dataclass(frozen=True)
class MeanOptions:
    """The mean has no options."""


@dataclass(frozen=True)
class MomentumOptions:
    """FedAvgM's options."""

    learning_rate: PositiveFloat = Field(1.0, description="the server's step size")
    momentum: float = Field(0.9, ge=0.0, lt=1.0, description="share of the last step in the next; 0: FedAvg")


@dataclass(frozen=True)
class AdagradOptions:
    """FedAdagrad's options."""

    learning_rate: PositiveFloat = Field(0.01, description="the server's step size (eta)")
    tau: PositiveFloat = Field(1e-3, description="adaptivity: added to the root of the second moment")


@dataclass(frozen=True)
class AdamOptions:
    """Options of FedAdam and FedYogi."""

    learning_rate: PositiveFloat = Field(0.01, description="the server's step size (eta)")
    beta_1: float = Field(0.9, ge=0.0, lt=1.0, description="decay a round of the first moment")
    beta_2: float = Field(0.99, ge=0.0, lt=1.0, description="decay a round of the second moment")
    tau: PositiveFloat = Field(1e-3, description="adaptivity: added to the root of the second moment")


class WeightedMean(Rule[MeanOptions]):
    """The mean of the clients' arrays, weighted by their examples."""

    def aggregate_floats(
        self, current: Mapping[str, Tensor], updates: Sequence[ClientUpdate], names: Sequence[str], server_round: int
    ) -> dict[str, Tensor]:
        """Flower's FedAvg."""
        return mean(updates, names, server_round)


class FedAvgM(Rule[MomentumOptions]):
    """v <- momentum v + (w - mean); w <- w - rate v."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.flower = flower.FedAvgM(server_learning_rate=self.options.learning_rate, server_momentum=self.options.momentum)

    def aggregate_floats(
        self, current: Mapping[str, Tensor], updates: Sequence[ClientUpdate], names: Sequence[str], server_round: int
    ) -> dict[str, Tensor]:
        """Flower's FedAvgM on what is learned, the mean on the rest."""
        learned = [name for name in names if name in self.trainable]
        self.flower.current_arrays = record_of(current, learned)
        rest = mean(updates, (name for name in names if name not in self.trainable), server_round)
        return {**ask_flower(self.flower, updates, learned, server_round), **rest}

    def state(self) -> dict[str, Any]:
        """The momentum, in the order of the model's arrays."""
        vector = self.flower.momentum_vector
        return {} if vector is None else {"momentum": [torch.from_numpy(np.array(array)) for array in vector]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take it back."""
        self.flower.momentum_vector = [to_numpy(tensor) for tensor in state["momentum"]] if state else None


Moments = TypeVar("Moments", AdagradOptions, AdamOptions)


class Adaptive(Rule[Moments], Generic[Moments]):
    """m, v <- moments of (mean - w); w <- w + eta m / (sqrt v + tau)."""

    flower: FedOpt

    def aggregate_floats(
        self, current: Mapping[str, Tensor], updates: Sequence[ClientUpdate], names: Sequence[str], server_round: int
    ) -> dict[str, Tensor]:
        """Flower's class on what is learned, the mean on the rest."""
        learned = [name for name in names if name in self.trainable]
        self.flower.current_arrays = {name: to_numpy(current[name]) for name in learned}
        rest = mean(updates, (name for name in names if name not in self.trainable), server_round)
        return {**ask_flower(self.flower, updates, learned, server_round), **rest}

    def state(self) -> dict[str, Any]:
        """Both moments by name."""
        return {
            name: {key: torch.from_numpy(np.array(array)) for key, array in moment.items()}
            for name, moment in (("first", self.flower.m_t), ("second", self.flower.v_t))
            if moment is not None
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take them back."""

        def moment(name: str) -> Arrays | None:
            return {key: to_numpy(tensor) for key, tensor in state[name].items()} if name in state else None

        self.flower.m_t, self.flower.v_t = moment("first"), moment("second")


class FedAdagrad(Adaptive[AdagradOptions]):
    """v <- v + change^2."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.flower = flower.FedAdagrad(eta=self.options.learning_rate, tau=self.options.tau)


class FedAdam(Adaptive[AdamOptions]):
    """v <- beta_2 v + (1 - beta_2) change^2."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        options = self.options
        self.flower = flower.FedAdam(eta=options.learning_rate, beta_1=options.beta_1, beta_2=options.beta_2, tau=options.tau)


class FedYogi(Adaptive[AdamOptions]):
    """v <- v - (1 - beta_2) change^2 sign(v - change^2)."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        options = self.options
        self.flower = flower.FedYogi(eta=options.learning_rate, beta_1=options.beta_1, beta_2=options.beta_2, tau=options.tau)


FEDAVG = AggregationSpec("labelled clients train, the server averages (McMahan 2017)", MeanOptions, WeightedMean)
FEDAVGM = AggregationSpec("FedAvg with momentum on the server (Hsu 2019)", MomentumOptions, FedAvgM)
FEDADAGRAD = AggregationSpec("FedAvg with Adagrad on the server (Reddi 2021)", AdagradOptions, FedAdagrad)
FEDADAM = AggregationSpec("FedAvg with Adam on the server (Reddi 2021)", AdamOptions, FedAdam)
FEDYOGI = AggregationSpec("FedAvg with Yogi on the server (Reddi 2021)", AdamOptions, FedYogi)
