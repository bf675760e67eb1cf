"""An aggregation rule of one's own: clients with few examples weigh as much as a power of their size says.

Run it from the folder of this file::

    fedlab run fedavg-digits strategy=own_aggregation_rule:SPEC own_aggregation_rule.power=0.5 rounds=2
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fedlab.strategies.aggregation.rule import AggregationSpec, ClientUpdate, WeightedMean


@dataclass(frozen=True)
class Options:
    """Options of the rule."""

    power: float = field(default=0.5, metadata={"description": "exponent of the examples; 1: FedAvg, 0: a plain mean"})


class PowerMean(WeightedMean[Options]):
    """The mean of the clients' models, weighted by ``examples ** power``."""

    def weight(self, update: ClientUpdate) -> float:
        """Return a client's weight in the mean, before normalization."""
        return float(update.examples**self.options.power)


SPEC = AggregationSpec(Options, PowerMean)
