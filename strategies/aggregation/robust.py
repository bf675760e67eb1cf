"""Rules that hold when some clients send what they should not: coordinate-wise, or by the distances of updates.

**Source**: FedMedian, FedTrimmedAvg: Yin et al., Byzantine-Robust Distributed Learning, ICML 2018. Krum, MultiKrum:
Blanchard et al., Machine Learning with Adversaries, NeurIPS 2017. Bulyan: El Mhamdi et al., The Hidden Vulnerability
of Distributed Learning in Byzantium, ICML 2018. The arithmetic is that of Flower's classes.

**Departures** from Flower: (1) all floats go through the rule, batch-norm statistics too, counters do not: an image
more would weigh as much as a weight in a distance; (2) in float64, since Flower takes distances as a^2 + b^2 - 2 ab,
which in float32 loses close updates in rounding; (3) a run that is not sure of enough clients is refused before it
begins, where Flower goes on with fewer (Krum) or skips the round (Bulyan); so is a share that trims nobody, and its
default is 0.25, not 0.2, which trims none of four; (4) MultiKrum keeps all but the malicious if it is not told how
many, where Flower keeps one, which is Krum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedlab.strategies.aggregation.rule import AggregationSpec, ClientUpdate, Options, Rule, ask_flower


@dataclass(frozen=True)
class MedianOptions:
    """The median has no options."""


@dataclass(frozen=True)
class TrimmedOptions:
    """FedTrimmedAvg's one option."""

    trim_fraction: float = Field(0.25, gt=0.0, lt=0.5, description="share of the clients cut off at each end of a coordinate")


@dataclass(frozen=True)
class KrumOptions:
    """Krum's one option."""

    num_malicious: int = Field(0, ge=0, description="clients that may lie (f); a round needs 2 f + 3")


@dataclass(frozen=True)
class MultiKrumOptions:
    """MultiKrum's options."""

    num_malicious: int = Field(0, ge=0, description="clients that may lie (f); a round needs 2 f + 3")
    num_selected: int = Field(0, ge=0, description="clients that are averaged; 0: all but f")


@dataclass(frozen=True)
class BulyanOptions:
    """Bulyan's one option."""

    num_malicious: int = Field(0, ge=0, description="clients that may lie (f); a round needs 4 f + 3")


class RobustRule(Rule[Options]):
    """A rule of Flower's that remembers nothing, on all floats."""

    flower: FlowerFedAvg

    def aggregate_floats(
        self, current: Mapping[str, Tensor], updates: Sequence[ClientUpdate], names: Sequence[str], server_round: int
    ) -> dict[str, Tensor]:
        """Flower's class, in float64."""
        return ask_flower(self.flower, updates, names, server_round, precise=True)


class CoordinateMedian(RobustRule[MedianOptions]):
    """The median of each coordinate, each client counting once."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.flower = flower.FedMedian()


class TrimmedMean(RobustRule[TrimmedOptions]):
    """The mean of each coordinate without its extremes, each client counting once."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.flower = flower.FedTrimmedAvg(beta=self.options.trim_fraction)

    def incompatibility(self, clients: int) -> str:
        """A share that trims nobody is no trimmed mean."""
        if int(self.options.trim_fraction * clients):
            return ""
        needed = math.ceil(1 / self.options.trim_fraction)
        return f"a share of {self.options.trim_fraction:g} trims none of {clients} clients; {needed} are needed"


class Krum(RobustRule[KrumOptions]):
    """The one update whose neighbours are nearest."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.flower = flower.Krum(num_malicious_nodes=self.options.num_malicious)

    @property
    def min_updates(self) -> int:
        """2 f + 3."""
        return 2 * self.options.num_malicious + 3


class MultiKrum(RobustRule[MultiKrumOptions]):
    """The weighted mean of the updates whose neighbours are nearest."""

    @property
    def min_updates(self) -> int:
        """2 f + 3, and as many as are to be selected."""
        return max(2 * self.options.num_malicious + 3, self.options.num_selected)

    def aggregate_floats(
        self, current: Mapping[str, Tensor], updates: Sequence[ClientUpdate], names: Sequence[str], server_round: int
    ) -> dict[str, Tensor]:
        """Flower's class, told how many to select of those who answered."""
        malicious = self.options.num_malicious
        self.flower = flower.MultiKrum(
            num_malicious_nodes=malicious, num_nodes_to_select=self.options.num_selected or len(updates) - malicious
        )
        return super().aggregate_floats(current, updates, names, server_round)


class Bulyan(RobustRule[BulyanOptions]):
    """n - 2 f updates by MultiKrum; of each coordinate the mean of those nearest to their median."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.flower = flower.Bulyan(num_malicious_nodes=self.options.num_malicious)

    @property
    def min_updates(self) -> int:
        """4 f + 3."""
        return 4 * self.options.num_malicious + 3


FEDMEDIAN = AggregationSpec("the median of the clients' weights (Yin 2018)", MedianOptions, CoordinateMedian)
FEDTRIMMEDAVG = AggregationSpec("the mean of the clients' weights without their extremes (Yin 2018)", TrimmedOptions, TrimmedMean)
KRUM = AggregationSpec("the one client whose neighbours are nearest (Blanchard 2017)", KrumOptions, Krum)
MULTIKRUM = AggregationSpec("the mean of clients whose neighbours are nearest (Blanchard 2017)", MultiKrumOptions, MultiKrum)
BULYAN = AggregationSpec("MultiKrum, then a mean near the median (El Mhamdi 2018)", BulyanOptions, Bulyan)
