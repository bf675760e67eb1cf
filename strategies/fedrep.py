"""FedRep: clients share a representation; each first fits a head of its own to it, then moves the representation.

**Source**: Collins et al., Exploiting Shared Representations for Personalized Federated Learning, ICML 2021, algorithm
1: with the received representation phi fixed, client i takes tau steps on its head h_i; with h_i fixed, it takes steps
on phi, which it sends; the server takes the mean. The paper's experiments have ten head epochs for one of phi.

**State of a client**: h_i. **An absent client** keeps h_i as it is; in its next round h_i is first fitted to the phi of
that round.

**Departures**: (1) the ``client.*`` steps of a round are divided between head and representation, ``head_steps``
for each step of the representation and at least one step for it, so that a comparison is one of equal work; (2) batch
norms of the representation move their statistics in both phases, as in the authors' code; (3) those of FedPer.

**Metrics**: those of FedPer; ``loss`` is the mean over the steps of both phases.
"""

from __future__ import annotations

from dataclasses import replace

from flwr.app import Message, RecordDict
from pydantic import Field
from pydantic.dataclasses import dataclass

from fedlab.strategies import fedper
from fedlab.strategies.aggregation import Aggregation
from fedlab.strategies.fedper import Layers, SharedLayers, personal_names
from fedlab.strategies.local_training import Trained, run
from fedlab.strategies.personal import PERSONAL_METRICS, personal_client
from fedlab.strategies.protocol import SERVER_STEPS, ClientContext, StrategySpec
from fedlab.workload import Workload, model_template


@dataclass(frozen=True)
class Options:
    """FedRep's options."""

    head_steps: float = Field(
        10.0, ge=0.0, allow_inf_nan=False, description="steps of the head for each step of the representation"
    )
    layers: Layers = ""
    aggregation: Aggregation = "fedavg"


def phases(steps: int, head_steps: float) -> tuple[int, int]:
    """Return how many of a round's steps are the head's, and how many the representation's.

    >>> phases(33, 10.0), phases(5, 10.0), phases(1, 10.0), phases(8, 0.0)
    ((30, 3), (4, 1), (0, 1), (0, 8))
    """
    representation = min(steps, max(1, round(steps / (1 + head_steps))))
    return steps - representation, representation


def train(workload: Workload, message: Message, context: ClientContext) -> RecordDict:
    """Train the head, then the representation, and return the latter."""
    work, options = fedper.prepare(workload, message, context), context.config.strategy
    section = context.config.plugins["strategy"].section
    personal = personal_names(work.start, options.layers, f"{section}.layers")
    weights = frozenset(name for name, _ in model_template(workload).named_parameters())
    first, second = phases(work.steps, options.head_steps)
    head = run(workload, replace(work, steps=first, ema_decay=0.0, frozen=weights - personal))
    body = run(workload, replace(work, start=head.state, steps=second, frozen=weights & personal))
    total = first * (head.loss or 0.0) + second * (body.loss or 0.0)
    loss = total / work.steps if work.steps else None
    return fedper.reply(workload, message, context, work, Trained(body.state, loss))


SPEC: StrategySpec = StrategySpec(
    Options,
    SharedLayers,
    personal_client(train, fedper.personalize),
    needs_client_labels=True,
    client_state=True,
    metrics=PERSONAL_METRICS,
    ignores=SERVER_STEPS,
)
