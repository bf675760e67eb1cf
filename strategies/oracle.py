"""Oracle: what adaptation could reach at most. As the other strategies with source steps, and clients have labels.

**Source**: the supervised bound of every adaptation paper; the clients' half is FedAvg's.

It sees labels that no other strategy sees, so it asks for a workload whose clients train on labels:
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
from fedlab.strategies.protocol import ClientHalf, Entry, evaluate
from fedlab.strategies.source_only import PHASES
from fedlab.training import Progress
from fedlab.workload import Workload


@dataclass(frozen=True)
class Knobs:
    """The bound's one knob."""

    aggregation: Aggregation = "fedavg"


class Oracle(Alternating):
    """Server half: source steps in turn with labelled clients."""

    def __init__(self, workload: Workload, flat: Flat, progress: Progress) -> None:
        super().__init__(workload, flat, progress, build(Knobs, "oracle", flat).aggregation, labelled=True)


ENTRY: Entry = Entry(
    "source steps in turn with clients that have labels: the upper bound",
    Knobs,
    Oracle,
    ClientHalf(fedavg.train, evaluate),
    labelled=True,
    ceiling=True,
    phases=PHASES,
)
