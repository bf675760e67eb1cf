"""Oracle: the upper bound of adaptation. Source steps as in the other strategies, and clients that have labels.

**Source**: the supervised bound of every adaptation paper; the client side is FedAvg's.

It reads labels that no other strategy reads, so it needs a workload whose clients train on labels:
``digits.client_labels=true``. The preset ``oracle-digits`` is FedAvg after pre-training, without source steps in the
rounds.

**Metrics**: as FedAvg; the server's ``loss`` is that of its source steps.
"""

from __future__ import annotations

from functools import partial

from pydantic.dataclasses import dataclass

from fedlab.strategies import fedavg
from fedlab.strategies.aggregation import Aggregation
from fedlab.strategies.alternating import Alternating
from fedlab.strategies.protocol import StrategySpec
from fedlab.strategies.source_only import PHASES


@dataclass(frozen=True)
class Options:
    """The upper bound's options."""

    aggregation: Aggregation = "fedavg"


SPEC: StrategySpec = StrategySpec(
    Options,
    partial(Alternating, labeled=True),
    fedavg.clients(),
    needs_client_labels=True,
    is_upper_bound=True,
    phases=PHASES,
)
