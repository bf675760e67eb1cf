"""The weighted mean, and server optimizers for which the clients' mean change is a pseudo-gradient.

**Source**: FedAvg: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS
2017, algorithm 1. FedAvgM: Hsu et al., Measuring the Effects of Non-Identical Data Distribution, 2019, section 4.3.
FedAdagrad, FedAdam, FedYogi: Reddi et al., Adaptive Federated Optimization, ICLR 2021, algorithm 2. The arithmetic is
that of Flower's classes of the same names, with which the tests compare.

**Departures**: (1) from Flower: only trainable arrays go through the optimizer; batch-norm statistics take the weighted
mean, or a step could make a variance negative; (2) from Flower: defaults, since 0.1 a weight and round is more than a
weight of our networks; (3) from the paper, as Flower: FedAdam corrects its moments' bias, counting from round + 1;
moments start at 0, not at tau squared; (4) from Flower: FedAdam's step is taken in the arrays' own type, where Flower's
is in float64.

All tensors of one name have the shape of the model's array.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedlab.config.sections import PositiveFloat
from fedlab.strategies.aggregation.rule import AggregationSpec, WeightedMean


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


class FedAvg(WeightedMean[MeanOptions]):
    """The mean of the clients' arrays, weighted by their examples."""


class FedAvgM(WeightedMean[MomentumOptions]):
    """v <- momentum v + (w - mean); w <- w - rate v. The first v is w - mean."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.velocity: dict[str, Tensor] = {}

    def step(self, mean: Mapping[str, Tensor], server_round: int) -> Mapping[str, Tensor]:
        """Return w - rate v; without momentum and with rate 1 that is the mean, to the bit."""
        rate, momentum = self.options.learning_rate, self.options.momentum
        if rate == 1 and not momentum:
            return mean
        new = {}
        for name, value in mean.items():
            w = self.current[name]
            gradient = w - value
            last = self.velocity.get(name)
            self.velocity[name] = gradient if last is None else momentum * last + gradient
            new[name] = w - rate * self.velocity[name]
        return new

    def state(self) -> dict[str, Any]:
        """Return v by name, after a first step."""
        return {"momentum": dict(self.velocity)} if self.velocity else {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the velocity v."""
        self.velocity = dict(state.get("momentum", {}))


Moments = TypeVar("Moments", AdagradOptions, AdamOptions)


class FedOpt(WeightedMean[Moments], Generic[Moments]):
    """Algorithm 2: with d = mean - w, m <- beta_1 m + (1 - beta_1) d; v by rule; w <- w + eta m / (sqrt v + tau)."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.first: dict[str, Tensor] = {}  # m
        self.second: dict[str, Tensor] = {}  # v

    @property
    def beta_1(self) -> float:
        """Decay of the first moment a round."""
        return 0.0

    def rate(self, server_round: int) -> float:
        """Return the step size of a round (eta)."""
        return self.options.learning_rate

    def second_moment(self, v: Tensor, squared: Tensor) -> Tensor:
        """Return the next v from the last and d squared, elementwise."""
        raise NotImplementedError

    def step(self, mean: Mapping[str, Tensor], server_round: int) -> Mapping[str, Tensor]:
        """Return w + eta m / (sqrt v + tau)."""
        eta, beta_1, new = self.rate(server_round), self.beta_1, {}
        for name, value in mean.items():
            w = self.current[name]
            change = value - w
            m, v = (moment.get(name, torch.zeros_like(w)) for moment in (self.first, self.second))
            m = beta_1 * m + (1 - beta_1) * change
            v = self.second_moment(v, change.square())
            self.first[name], self.second[name] = m, v
            new[name] = w + eta * m / (v.sqrt() + self.options.tau)
        return new

    def state(self) -> dict[str, Any]:
        """Return both moments by name, after a first step."""
        return {"first": dict(self.first), "second": dict(self.second)} if self.first else {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore both moments."""
        self.first, self.second = dict(state.get("first", {})), dict(state.get("second", {}))


class FedAdagrad(FedOpt[AdagradOptions]):
    """v <- v + d^2, and m = d."""

    def second_moment(self, v: Tensor, squared: Tensor) -> Tensor:
        """Return v + d^2."""
        return v + squared


class FedAdam(FedOpt[AdamOptions]):
    """v <- beta_2 v + (1 - beta_2) d^2, with the moments' bias corrected in the step size."""

    @property
    def beta_1(self) -> float:
        """Decay of the first moment a round."""
        return self.options.beta_1

    def rate(self, server_round: int) -> float:
        """Return eta sqrt(1 - beta_2^t) / (1 - beta_1^t), t = round + 1 (Kingma and Ba 2015, end of section 2)."""
        t = server_round + 1
        return self.options.learning_rate * math.sqrt(1 - self.options.beta_2**t) / (1 - self.beta_1**t)

    def second_moment(self, v: Tensor, squared: Tensor) -> Tensor:
        """Return beta_2 v + (1 - beta_2) d^2."""
        return self.options.beta_2 * v + (1 - self.options.beta_2) * squared


class FedYogi(FedOpt[AdamOptions]):
    """v <- v - (1 - beta_2) d^2 sign(v - d^2)."""

    @property
    def beta_1(self) -> float:
        """Decay of the first moment a round."""
        return self.options.beta_1

    def second_moment(self, v: Tensor, squared: Tensor) -> Tensor:
        """Return v - (1 - beta_2) d^2 sign(v - d^2)."""
        return v - (1 - self.options.beta_2) * squared * torch.sign(v - squared)


FEDAVG = AggregationSpec(MeanOptions, FedAvg)
FEDAVGM = AggregationSpec(MomentumOptions, FedAvgM)
FEDADAGRAD = AggregationSpec(AdagradOptions, FedAdagrad)
FEDADAM = AggregationSpec(AdamOptions, FedAdam)
FEDYOGI = AggregationSpec(AdamOptions, FedYogi)
