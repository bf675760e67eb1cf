"""Rules that hold when some clients send what they should not: coordinate-wise, or by the distances of updates.

**Source**: FedMedian, FedTrimmedAvg: Yin et al., Byzantine-Robust Distributed Learning, ICML 2018, definitions 1 and 2.
Krum, MultiKrum: Blanchard et al., Machine Learning with Adversaries, NeurIPS 2017, section 4. Bulyan: El Mhamdi et al.,
The Hidden Vulnerability of Distributed Learning in Byzantium, ICML 2018, section 4. The tests compare with Flower's
classes of the same names.

**Departures** from Flower: (1) all floats go through the rule, batch-norm statistics too, counters do not: an image
more would weigh as much as a weight in a distance; (2) in float64, and distances are sums of squared differences:
Flower's a^2 + b^2 - 2 ab in float32 loses close updates in rounding; (3) a run that is not sure of enough clients is
refused before it begins, where Flower goes on with fewer (Krum) or skips the round (Bulyan); so is a share that trims
nobody, and its default is 0.25, not 0.2, which trims none of four; (4) MultiKrum keeps all but the malicious if it is
not told how many, where Flower keeps one, which is Krum; (5) of equal scores or distances the lower partition is taken.
From the papers, as Flower: (6) MultiKrum weighs the selected by their examples; (7) Bulyan selects by one scoring of
all updates, where the paper scores those that are left anew after each.

Every rule needs all updates at once. Shapes: a ``stack`` is (n, ...), one array of each of n clients; distances (n, n).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedlab.errors import plural
from fedlab.strategies.aggregation.rule import AggregationSpec, ClientUpdate, Options, Rule, accumulate


@dataclass(frozen=True)
class MedianOptions:
    """The median has no options."""


@dataclass(frozen=True)
class TrimmedOptions:
    """FedTrimmedAvg's one option."""

    trim_fraction: float = Field(
        0.25, gt=0.0, lt=0.5, description="share of the clients cut off at each end of a coordinate"
    )


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
    """A rule that remembers nothing between rounds and compares the clients' arrays with each other."""

    needs_all_updates = True

    def begin(self, current: Mapping[str, Tensor]) -> None:
        """Begin a round without updates."""
        super().begin(current)
        self.updates: list[ClientUpdate] = []

    def add_floats(self, update: ClientUpdate, weight: float) -> None:
        """Keep the update, with arrays of its own: a row of a stack would keep that, on a GPU the GPU's memory."""
        self.updates.append(replace(update, arrays=dict(update.arrays)))

    def stack(self, name: str) -> Tensor:
        """Return one array of every client (n, ...), float64."""
        return torch.stack([update.arrays[name] for update in self.updates]).double()

    def krum(self, malicious: int, count: int) -> list[int]:
        """Return the positions of the ``count`` updates with the lowest Krum scores, the lowest first."""
        distances = torch.stack([squared_distances(self.stack(name)) for name in self.floats]).sum(0)
        order: list[int] = krum_scores(distances, malicious).argsort(stable=True).tolist()
        return order[:count]


class CoordinateMedian(RobustRule[MedianOptions]):
    """The median of each coordinate, each client counting once."""

    uses_weights = False

    def aggregate_floats(self, server_round: int, total: float) -> dict[str, Tensor]:
        """Return the medians."""
        return {name: median(self.stack(name)) for name in self.floats}


class TrimmedMean(RobustRule[TrimmedOptions]):
    """The mean of each coordinate without its extremes, each client counting once."""

    uses_weights = False

    def incompatibility(self, clients: int) -> str:
        """Return a refusal of a share that trims nobody, which is no trimmed mean; empty if it trims."""
        if int(self.options.trim_fraction * clients):
            return ""
        needed = math.ceil(1 / self.options.trim_fraction)
        return (
            f"a share of {self.options.trim_fraction:g} trims none of {plural(clients, 'client')}; {needed} are needed"
        )

    def aggregate_floats(self, server_round: int, total: float) -> dict[str, Tensor]:
        """Return the means without the floor(share n) smallest and as many largest values."""
        cut = int(self.options.trim_fraction * self.count)
        return {name: trimmed_mean(self.stack(name), cut) for name in self.floats}


class Krum(RobustRule[KrumOptions]):
    """The one update whose neighbors are nearest."""

    uses_weights = False

    @property
    def min_updates(self) -> int:
        """2 f + 3, with f clients that may lie."""
        return 2 * self.options.num_malicious + 3

    def aggregate_floats(self, server_round: int, total: float) -> dict[str, Tensor]:
        """Return the arrays of the update with the lowest score."""
        (best,) = self.krum(self.options.num_malicious, 1)
        return {name: self.updates[best].arrays[name].clone() for name in self.floats}


class MultiKrum(RobustRule[MultiKrumOptions]):
    """The weighted mean of the updates whose neighbors are nearest."""

    @property
    def min_updates(self) -> int:
        """2 f + 3, and as many as are to be selected."""
        return max(2 * self.options.num_malicious + 3, self.options.num_selected)

    def aggregate_floats(self, server_round: int, total: float) -> dict[str, Tensor]:
        """Return the mean of the selected updates, by default n - f, weighted by their examples."""
        malicious = self.options.num_malicious
        best = self.krum(malicious, self.options.num_selected or self.count - malicious)
        total_weight = sum(self.weight(self.updates[i]) for i in best)
        mean: dict[str, Tensor] = {}
        for update in (self.updates[i] for i in best):
            weight = self.weight(update) / total_weight
            accumulate(mean, {name: update.arrays[name].double() for name in self.floats}, self.floats, weight)
        return mean


class Bulyan(RobustRule[BulyanOptions]):
    """theta = n - 2 f updates by Krum's scores; of each coordinate the mean of the theta - 2 f nearest the median."""

    uses_weights = False

    @property
    def min_updates(self) -> int:
        """4 f + 3, with f clients that may lie."""
        return 4 * self.options.num_malicious + 3

    def aggregate_floats(self, server_round: int, total: float) -> dict[str, Tensor]:
        """Return the means near the medians of the selected updates."""
        malicious = self.options.num_malicious
        theta = self.count - 2 * malicious
        best = self.krum(malicious, theta)
        return {name: mean_near_median(self.stack(name)[best], theta - 2 * malicious) for name in self.floats}


def median(stack: Tensor) -> Tensor:
    """Return the median over the first dimension (...); of an even number the mean of the middle two."""
    ordered, n = stack.sort(0).values, len(stack)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


def trimmed_mean(stack: Tensor, cut: int) -> Tensor:
    """Return the mean over the first dimension (...) without its ``cut`` smallest and ``cut`` largest values."""
    return stack.sort(0).values[cut : len(stack) - cut].mean(0)


def mean_near_median(stack: Tensor, count: int) -> Tensor:
    """Return the mean over the first dimension (...) of the ``count`` values that are nearest to the median."""
    nearest = (stack - median(stack)).abs().argsort(dim=0, stable=True)[:count]
    return stack.gather(0, nearest).mean(0)


def squared_distances(stack: Tensor) -> Tensor:
    """Return the squared Euclidean distances (n, n) of n arrays (n, ...)."""
    rows = stack.flatten(1)
    return torch.stack([(rows - row).square().sum(1) for row in rows])


def krum_scores(distances: Tensor, malicious: int) -> Tensor:
    """Return the sum of squared distances to the n - f - 2 nearest others (n,), at least to one."""
    neighbors = max(1, len(distances) - malicious - 2)
    return distances.sort(1).values[:, 1 : neighbors + 1].sum(1)  # the first is the distance to itself, 0


FEDMEDIAN = AggregationSpec(MedianOptions, CoordinateMedian)
FEDTRIMMEDAVG = AggregationSpec(TrimmedOptions, TrimmedMean)
KRUM = AggregationSpec(KrumOptions, Krum)
MULTIKRUM = AggregationSpec(MultiKrumOptions, MultiKrum)
BULYAN = AggregationSpec(BulyanOptions, Bulyan)
