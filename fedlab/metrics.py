"""Declared metrics and phases: what the numbers of a run are called, how they are written and which way is better.

Workloads and strategies declare what they report (``WorkloadSpec.metrics``, ``StrategySpec.metrics`` and ``phases``).
A run writes the declarations into ``manifest.json``, and progress displays, reports and comparisons read them from
there: none of them knows a metric by its name.

A declared name is one of:

- ``"accuracy"``: that metric;
- ``"distance_*"``: every metric that begins with ``distance_``;
- ``"*_average"``: a *variant* of any other declared metric. ``accuracy_average`` has the unit, the direction and the
  group of ``accuracy``, and the title, the role and the place within the group of the variant. ``"*_*-shot"`` stands
  for ``accuracy_1-shot``, ``accuracy_5-shot``, ... in the order of their numbers.

A name that nobody has declared is shown as it is; it is then not known which way is better.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

FRACTION = "fraction"  # the unit of values in [0, 1] that are written in percent
UNDECLARED_ORDER, AUXILIARY_ORDER = 99, 100  # behind the declared results

Role = Literal["result", "reference", "margin", "auxiliary", "hidden"]


@dataclass(frozen=True)
class Metric:
    """One declared metric, a family of metrics (``"distance_*"``) or a variant of others (``"*_average"``).

    Attributes
    ----------
    name
        Name or pattern, see the module's documentation.
    title
        The name for people; "": the name itself, with spaces for underscores.
    unit
        ``FRACTION``: a value in [0, 1], written in percent; else a text that is written behind the number.
    higher_is_better
        None where neither direction is better, or it is not known.
    group
        What a metric is compared by; "": its own name.
    order
        Groups of a lower order come first, and the first one is what a run is judged by. Of a variant, the place within
        its group: the last one that is no reference is the best informed.
    role
        "result"; "reference": what results are compared with; "margin": half the width of an interval around a result;
        "auxiliary": shown where there is nothing else; "hidden": a count, which is no result.
    note
        One phrase that explains a variant in a legend.
    confusion
        The statistic of a confusion matrix that this metric is: "accuracy", "mean_iou" or "" for none. Reports show a
        matrix only where it agrees with what the client reported.
    when_zero
        What a client did whose value is 0, said below the table of the last round with the names of these clients; "":
        nothing is said.
    """

    name: str
    title: str = ""
    unit: str = ""
    higher_is_better: bool | None = None
    group: str = ""
    order: int = 0
    role: Role = "result"
    note: str = ""
    confusion: str = ""
    when_zero: str = ""

    @property
    def is_variant(self) -> bool:
        """True for a pattern that stands for variants of other metrics."""
        return self.name.startswith("*_")


@dataclass(frozen=True)
class Phase:
    """One phase of a round, by the name under which its events and seconds are logged.

    Attributes
    ----------
    evaluation
        Its seconds belong to measuring, not to training: budgets and tables leave them out.
    logged
        A log has a line for it, since it happens once and takes long.
    note
        That line, a sentence; "": the title.
    """

    name: str
    title: str
    evaluation: bool = False
    logged: bool = False
    note: str = ""


COMMON_METRICS = (
    Metric("loss", higher_is_better=False, order=AUXILIARY_ORDER, role="auxiliary"),
    Metric("num-examples", "test examples", role="hidden"),
)
COMMON_PHASES = (
    Phase("start", "the model is made"),
    Phase("pretrain", "pre-training", logged=True),
    Phase("clients", "clients train"),
    Phase("server", "server trains"),
    Phase("evaluate", "clients test", evaluation=True),
    Phase("test", "the server tests the global model", evaluation=True),
    Phase("score", "the server scores samples", evaluation=True),
)


class Declares(Protocol):
    """A row of the tables of strategies and workloads."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Declared metrics."""
        ...

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Declared phases."""
        ...
