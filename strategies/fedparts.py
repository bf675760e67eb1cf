"""FedParts: FedAvg in which a client uploads one part of its model a round, and the parts take turns.

Every client gets the whole model and trains all of it; of G parts it sends back one, in round r the client at place p
part (r + p) mod G. The server averages each part over the clients that sent it. Uploads shrink to 1/G or so, with
nothing for clients to remember between rounds.

**Source**: de Goede, Cox and Decouchant, Training Diffusion Models with Federated Learning, 2024 (arXiv 2406.12575),
whose USplit shares out encoder, bottleneck and decoder of a U-Net to clients by round; any model and parts here.

**Departures**: (1) turns are by number, not drawn; (2) its variants that leave a part with each client for good are not
here: clients keep no state of the run, and a part that lived on the server would save no bytes; (3) those of FedAvg.

**Metrics**: as FedAvg; ``uploaded``: share of the model's numbers that clients sent in the last round.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedlab.config.schema import Config
from fedlab.errors import ConfigError
from fedlab.seeds import seeded
from fedlab.strategies import aggregation, fedavg
from fedlab.strategies.protocol import (
    CONFIG,
    ClientContext,
    ClientFunctions,
    StrategySpec,
    arrays_of,
    client_dataset,
    drop_none,
    evaluate,
    partition_by_node,
)
from fedlab.training import Progress
from fedlab.workload import Workload

PART = "part"


@dataclass(frozen=True)
class Options:
    """FedParts' one option."""

    parts: str = Field(
        "",
        description="patterns of array names, with spaces between those of one part and ; between parts, as "
        "'stem* down*; up*'; what none names is always sent; empty: two halves in the model's order",
    )


class FedParts(fedavg.FedAvg):
    """Server half: who sends what, and the mean of what came."""

    def __init__(self, workload: Workload, config: Config, progress: Progress) -> None:
        super().__init__(workload, config, progress)
        with seeded("names of a model"):
            state = workload.model().state_dict()
        self.parts = names_of(state, config.strategy.parts)
        self.asked: dict[int, int] = {}  # node to part
        self.share = 0.0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """FedAvg's messages, each with the part to send back."""
        places = {node: place for place, node in enumerate(partition_by_node(grid))}
        messages = list(super().configure_train(server_round, arrays, config, grid))
        for message in messages:
            node, record = message.metadata.dst_node_id, message.content[CONFIG]
            assert isinstance(record, ConfigRecord)
            self.asked[node] = (server_round + places[node]) % len(self.parts)
            message.content = RecordDict({**message.content, CONFIG: ConfigRecord({**record, PART: self.asked[node]})})
        return messages

    def expected(self, reply: Message) -> dict[str, Tensor]:
        """The arrays of the part that was asked for."""
        names = self.parts[self.asked[reply.metadata.src_node_id]]
        return {name: tensor for name, tensor in self.sent.items() if name in names}

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Each array's mean over those who sent it, weighted by their examples; what nobody sent stays."""
        updates, new = aggregation.client_updates(replies), dict(self.sent)
        senders = {name: tuple(i for i, one in enumerate(updates) if name in one.arrays) for name in self.sent}
        for who in set(senders.values()) - {()}:
            sent = {name: tensor for name, tensor in self.sent.items() if senders[name] == who}
            new |= self.rule.aggregate(sent, [updates[i] for i in who], server_round)
        whole = len(updates) * sum(tensor.numel() for tensor in self.sent.values())
        self.share = sum(array.numel() for one in updates for array in one.arrays.values()) / whole if whole else 0.0
        return ArrayRecord(new), None

    def metrics(self) -> dict[str, float]:
        """The share that was uploaded."""
        return {"uploaded": self.share} if self.share else {}


def names_of(state: Mapping[str, Tensor], parts: str) -> list[frozenset[str]]:
    """Names of the arrays of each part, those in every part included.

    Raises
    ------
    ConfigError
        When there is but one part, or a pattern names no array.
    """
    if not parts.strip():
        return _halves(state)
    found: list[frozenset[str]] = []
    for part in parts.split(";"):
        patterns = part.split()
        if not patterns:
            raise ConfigError(f"option 'fedparts.parts' is {parts!r} and has an empty part; leave out the ';' too many")
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in state):
                heads = sorted({name.partition(".")[0] for name in state})
                raise ConfigError(
                    f"option 'fedparts.parts': {pattern!r} names no array of the model, whose arrays begin with "
                    f"{', '.join(heads)}; write for example {heads[0]}*;{heads[-1]}*"
                )
        found.append(frozenset(name for name in state if any(fnmatchcase(name, pattern) for pattern in patterns)))
    if len(found) < 2:
        raise ConfigError(f"option 'fedparts.parts' is {parts!r}, one part; write two or more, apart with ';'")
    always = frozenset(state) - frozenset().union(*found)
    return [names | always for names in found]


def _halves(state: Mapping[str, Tensor]) -> list[frozenset[str]]:
    """The model's arrays in two, in order, of sizes as even as that allows."""
    if len(state) < 2:
        raise ConfigError(f"fedparts sends parts of a model, and this one has {len(state)} arrays; take fedavg")
    total, passed, first = sum(tensor.numel() for tensor in state.values()), 0, set[str]()
    for name, tensor in state.items():
        if 2 * passed < total - tensor.numel() or not first:
            first.add(name)
        else:
            break
        passed += tensor.numel()
    return [frozenset(first), frozenset(state) - first]


def train(workload: Workload, message: Message, context: ClientContext) -> RecordDict:
    """Client half: FedAvg's local training; of the model the part that was asked for."""
    data, config = client_dataset(workload, context, "train"), message.content[CONFIG]
    assert isinstance(config, ConfigRecord)
    model, mean = fedavg.local_training(workload, message, context, data)
    parts = names_of(arrays_of(message.content), context.config.strategy.parts)
    part = config[PART]
    assert isinstance(part, int)
    state = {name: tensor for name, tensor in model.state_dict().items() if name in parts[part]}
    return aggregation.make_reply(workload, message, context, state, drop_none(loss=mean), data)


SPEC: StrategySpec = StrategySpec(
    Options,
    FedParts,
    ClientFunctions(train, evaluate),
    needs_client_labels=True,
)
