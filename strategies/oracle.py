"""Oracle: the upper bound of adaptation. Source steps as in the other strategies, and clients that have labels.

**Source**: the supervised bound of every adaptation paper; the client side is FedAvg's.

It reads labels that no other strategy reads, so it needs a workload whose clients train on labels:
``digits.setting=oracle``. The preset ``oracle-digits`` is FedAvg after pre-training, without source steps in the
rounds.

**Metrics**: as FedAvg; the server's ``loss`` is that of its source steps.
"""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from fedlab.config.schema import Flat, build
from fedlab.strategies import fedavg
from fedlab.strategies.aggregation import Aggregation
from fedlab.strategies.alternating import Alternating
from fedlab.strategies.protocol import ClientFunctions, StrategySpec, evaluate
from fedlab.training import Progress
from fedlab.workload import Workload


@dataclass(frozen=True)
class Knobs:
    """The upper bound's options."""

    aggregation: Aggregation = "fedavg"


def server(workload: Workload, flat: Flat, progress: Progress) -> Alternating:
    """Return the server side: source steps in turn with labeled clients."""
    return Alternating(workload, flat, progress, build(Knobs, "oracle", flat).aggregation, labeled=True)


SPEC: StrategySpec = StrategySpec(
    "source steps in turn with clients that have labels: the upper bound",
    Knobs,
    server,
    ClientFunctions(fedavg.train, evaluate),
    needs_client_labels=True,
    is_upper_bound=True,
)
