"""FedParts: FedAvg in which a client uploads one part of its model a round, and the parts take turns.

Every client gets the whole model and trains all of it; of G parts it sends back one: in round r the p-th connected
client, in the order of partitions, sends part (r + p) mod G. The server averages each part over the clients that sent
it. Uploads shrink to about 1/G, and clients keep no state between rounds.

**Source**: de Goede, Cox and Decouchant, Training Diffusion Models with Federated Learning, 2024 (arXiv 2406.12575),
whose USplit distributes encoder, bottleneck and decoder of a U-Net over clients by round; any model and parts here.

**Departures**: (1) turns are by number, not drawn; (2) its variants in which a part never leaves the client are not
implemented, see FedPer for a part of that kind; (3) those of FedAvg.

**Metrics**: as FedAvg; ``uploaded``: fraction of the model's numbers that clients sent in the last round.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedlab.config.schema import Config
from fedlab.errors import ConfigError
from fedlab.strategies import aggregation, fedavg
from fedlab.strategies.base import broadcast
from fedlab.strategies.local_training import prepare, run
from fedlab.strategies.protocol import (
    CONFIG,
    SERVER_STEPS,
    ClientContext,
    ClientFunctions,
    StrategySpec,
    arrays_of,
    drop_none,
    evaluate,
    partition_by_node,
    tensor_record,
)
from fedlab.training import Progress
from fedlab.workload import Workload, blank_model

PART = "part"


@dataclass(frozen=True)
class Options:
    """FedParts' options."""

    parts: str = Field(
        "",
        description="patterns of array names, with spaces between those of one part and ; between parts, as "
        "'stem* down*; up*'; arrays in no part are always sent; empty: two halves in the model's order",
    )


class FedParts(fedavg.FedAvg):
    """Server side: which client sends which part, and the mean of each part."""

    def __init__(self, workload: Workload, config: Config, progress: Progress) -> None:
        super().__init__(workload, config, progress)
        state = blank_model(workload).state_dict()
        self.parts = names_of(state, config.strategy.parts)
        self.partition_of: Mapping[int, int] = {}
        self.asked: dict[int, int] = {}  # partition to part, in this round
        self.uploaded = 0.0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return for each client the global model and the number of the part to send back."""
        self.updates.send(arrays, config)
        self.partition_of = partition_by_node(grid)
        places = enumerate(self.partition_of.values())
        self.asked = {partition: (server_round + place) % len(self.parts) for place, partition in places}

        def part_of(partition: int) -> dict[str, ConfigRecord]:
            return {CONFIG: ConfigRecord({**config, PART: self.asked[partition]})}

        return broadcast(grid, MessageType.TRAIN, server_round, arrays, config, per_client=part_of)

    def check(self, reply: Message) -> None:
        """Refuse a reply that is not the part that was asked for."""
        names = self.parts[self.asked[self.partition_of[reply.metadata.src_node_id]]]
        self.updates.check(reply, {name: tensor for name, tensor in self.updates.sent.items() if name in names})

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return each array's mean over the clients that sent it, weighted by examples; other arrays stay."""
        updates, sent = list(aggregation.client_updates(replies)), self.updates.sent
        new = dict(sent)
        senders = {name: tuple(i for i, one in enumerate(updates) if name in one.arrays) for name in sent}
        for group in set(senders.values()) - {()}:
            part = {name: tensor for name, tensor in sent.items() if senders[name] == group}
            new |= self.rule.aggregate(part, [updates[i] for i in group], server_round)
        total = len(updates) * sum(tensor.numel() for tensor in sent.values())
        self.uploaded = sum(array.numel() for one in updates for array in one.arrays.values()) / total if total else 0.0
        return tensor_record(new), None

    def metrics(self) -> dict[str, float]:
        """Return the fraction of the model that was uploaded."""
        return {"uploaded": self.uploaded} if self.uploaded else {}


def names_of(state: Mapping[str, Tensor], parts: str) -> list[frozenset[str]]:
    """Return the names of the arrays of each part; arrays in no part are in every one.

    Raises
    ------
    ConfigError
        When there are fewer than two parts, one is empty, or a pattern matches no array.
    """
    if not parts.strip():
        return _halves(state)
    found: list[frozenset[str]] = []
    for part in parts.split(";"):
        patterns = part.split()
        if not patterns:
            raise ConfigError(f"option 'fedparts.parts' is {parts!r} and has an empty part; remove the extra ';'")
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in state):
                heads = sorted({name.partition(".")[0] for name in state})
                raise ConfigError(
                    f"option 'fedparts.parts': {pattern!r} names no array of the model, whose arrays begin with "
                    f"{', '.join(heads)}; write for example {heads[0]}*;{heads[-1]}*"
                )
        found.append(frozenset(name for name in state if any(fnmatchcase(name, pattern) for pattern in patterns)))
    if len(found) < 2:
        raise ConfigError(f"option 'fedparts.parts' is {parts!r}, one part; write two or more, separated by ';'")
    always = frozenset(state) - frozenset().union(*found)
    return [names | always for names in found]


def _halves(state: Mapping[str, Tensor]) -> list[frozenset[str]]:
    """Return the model's arrays in two parts, in order, of sizes as equal as that allows."""
    if len(state) < 2:
        raise ConfigError(f"fedparts sends parts of a model, and this one has {len(state)} arrays; use fedavg")
    total, passed, first = sum(tensor.numel() for tensor in state.values()), 0, set[str]()
    for name, tensor in state.items():
        if 2 * passed < total - tensor.numel() or not first:
            first.add(name)
        else:
            break
        passed += tensor.numel()
    return [frozenset(first), frozenset(state) - first]


def train(workload: Workload, message: Message, context: ClientContext) -> RecordDict:
    """Train as in FedAvg and return the part of the model that was asked for."""
    config = message.content[CONFIG]
    assert isinstance(config, ConfigRecord)
    work = prepare(workload, message, context)
    trained = run(workload, work)
    parts = names_of(arrays_of(message.content), context.config.strategy.parts)
    part = config[PART]
    assert isinstance(part, int)
    state = {name: tensor for name, tensor in trained.state.items() if name in parts[part]}
    return aggregation.make_reply(workload, message, context, state, drop_none(loss=trained.loss), work.data)


SPEC: StrategySpec = StrategySpec(
    Options,
    FedParts,
    ClientFunctions(train, evaluate),
    needs_client_labels=True,
    ignores=SERVER_STEPS,
)
