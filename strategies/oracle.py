"""Oracle: what adaptation could reach at most. As the other strategies with source steps, and clients have labels.

**Source**: the supervised bound of every adaptation paper; the clients' half is FedAvg's.

It sees labels that no other strategy sees, so it asks for a workload whose clients train on labels:
``digits.client_labels=true``. The preset ``oracle-digits`` is FedAvg after pre-training, without source steps in the
rounds.

**Metrics**: as FedAvg; the server's ``loss`` is that of its source steps.
"""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from fedlab.config.schema import Config
from fedlab.strategies import fedavg
from fedlab.strategies.aggregation import Aggregation
from fedlab.strategies.alternating import Alternating
from fedlab.strategies.protocol import ClientFunctions, StrategySpec, evaluate
from fedlab.strategies.source_only import PHASES
from fedlab.training import Progress
from fedlab.workload import Workload


@dataclass(frozen=True)
class Options:
    """The bound's one option."""

    aggregation: Aggregation = "fedavg"


class Oracle(Alternating):
    """Server half: source steps in turn with labelled clients."""

    def __init__(self, workload: Workload, config: Config, progress: Progress) -> None:
        super().__init__(workload, config, progress, labelled=True)


SPEC: StrategySpec = StrategySpec(
    Options,
    Oracle,
    ClientFunctions(fedavg.train, evaluate),
    needs_client_labels=True,
    is_upper_bound=True,
    phases=PHASES,
)
