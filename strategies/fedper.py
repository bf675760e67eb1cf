"""FedPer: clients share the lower layers of a model, and each has upper layers of its own.

**Source**: Arivazhagan et al., Federated Learning with Personalization Layers, 2019 (arXiv 1912.00818), algorithms 1
and 2: a client trains base layers W_B and its personalization layers W_P together, and sends W_B, of which the server
takes the mean.

**State of a client**: its W_P. **An absent client** keeps W_P as it is; in its next round it meets the W_B of that
round.

**Departures**: (1) the personalization layers are the model's ``head``, or the arrays that ``fedper.layers`` names; (2)
they begin at the initial model's, pre-trained or not, where the paper draws them for each client. The initial
ones go down with every message, for clients that have none yet, and never come up; (3) those of FedAvg.

**Metrics**: those of ``strategies/personal.py``. Nobody trains a head for all clients: ``global`` is the shared layers
under the initial ones, which is what a client has that has not trained yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Annotated

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedlab.config.schema import Config
from fedlab.errors import ConfigError
from fedlab.models.feature_classifier import check_parts
from fedlab.runs.client_state import State
from fedlab.strategies import aggregation, fedavg, local_training
from fedlab.strategies.aggregation import Aggregation
from fedlab.strategies.local_training import LocalWork, Tensors, Trained
from fedlab.strategies.personal import PERSONAL_METRICS, personal_client
from fedlab.strategies.protocol import SERVER_STEPS, ClientContext, StrategySpec, drop_none, round_of, tensor_record
from fedlab.training import Progress
from fedlab.workload import Workload, blank_model

LAYERS = "layers"  # W_P, in the client's state

Layers = Annotated[
    str,
    Field(
        description="patterns of the names of arrays that stay with a client, with spaces between them, as "
        "'head.* features.4.*'; empty: the model's head"
    ),
]


@dataclass(frozen=True)
class Options:
    """FedPer's options."""

    layers: Layers = ""
    aggregation: Aggregation = "fedavg"


class SharedLayers(fedavg.FedAvg):
    """Server side: a rule aggregates the layers that clients share; the initial personalization layers stay."""

    def __init__(self, workload: Workload, config: Config, progress: Progress) -> None:
        super().__init__(workload, config, progress)
        model = blank_model(workload)
        if not config.strategy.layers:
            check_parts(model, config.run.strategy, config.run.workload)
        section = config.plugins["strategy"].section
        self.personal = personal_names(model.state_dict(), config.strategy.layers, f"{section}.layers")

    def check(self, reply: Message) -> None:
        """Refuse a reply that is not the shared part of the model."""
        self.updates.check(reply, shared_part(self.updates.sent, self.personal))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the rule's new shared layers, with the initial personalization layers.

        A rule of any kind gets whole models, whose personalization layers are those that were sent.
        """
        sent = self.updates.sent

        def whole() -> Iterator[aggregation.ClientUpdate]:
            for one in aggregation.client_updates(replies):
                yield replace(one, arrays={**sent, **one.arrays})

        new = self.rule.aggregate(sent, whole(), server_round)
        return tensor_record({**new, **{name: sent[name] for name in self.personal}}), None


def personal_names(state: Mapping[str, Tensor], layers: str, option: str) -> frozenset[str]:
    """Return the names of the arrays that stay with a client.

    Parameters
    ----------
    state
        State of the model.
    layers
        Patterns, see ``fedper.layers``.
    option
        Name of that option, for errors.

    Raises
    ------
    ConfigError
        When a pattern names no array, or no array is left to share.
    """
    patterns = layers.split() or ["head.*"]
    heads = sorted({name.partition(".")[0] for name in state})
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in state):
            raise ConfigError(
                f"option {option!r}: {pattern!r} names no array of the model, whose arrays begin with "
                f"{', '.join(heads)}; write for example {heads[-1]}*"
            )
    names = frozenset(name for name in state if any(fnmatchcase(name, pattern) for pattern in patterns))
    if len(names) == len(state):
        raise ConfigError(f"option {option!r} is {layers!r} and leaves no array to share; name fewer layers")
    return names


def shared_part(state: Tensors, personal: frozenset[str]) -> dict[str, Tensor]:
    """Return the arrays of a state that clients share."""
    return {name: tensor for name, tensor in state.items() if name not in personal}


def prepare(workload: Workload, message: Message, context: ClientContext) -> LocalWork:
    """Return FedAvg's local training, on the client's own personalization layers if it has any."""
    work = local_training.prepare(workload, message, context)
    if own := context.state.load(round_of(message)):
        work = replace(work, start={**work.start, **own[LAYERS]})
    return work


def reply(
    workload: Workload, message: Message, context: ClientContext, work: LocalWork, trained: Trained
) -> RecordDict:
    """Keep the personalization layers, and return the shared ones."""
    section = context.config.plugins["strategy"].section
    personal = personal_names(trained.state, context.config.strategy.layers, f"{section}.layers")
    context.state.save(round_of(message), {LAYERS: {name: trained.state[name] for name in personal}})
    metrics = drop_none(loss=trained.loss)
    shared = shared_part(trained.state, personal)
    return aggregation.make_reply(workload, message, context, shared, metrics, work.data)


def personalize(sent: Tensors, own: State) -> Tensors:
    """Return the shared layers under the client's own."""
    return {**sent, **own[LAYERS]}


SPEC: StrategySpec = StrategySpec(
    Options,
    SharedLayers,
    personal_client(partial(fedavg.train, prepare=prepare, reply=reply), personalize),
    needs_client_labels=True,
    client_state=True,
    metrics=PERSONAL_METRICS,
    ignores=SERVER_STEPS,
)
