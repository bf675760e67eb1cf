"""A strategy with something else on the wire: signSGD, in which a client sends one sign for each weight.

The server moves each weight by a step in the direction that most clients voted for; an upload is a quarter of FedAvg's.
Source: Bernstein et al., signSGD with majority vote, ICLR 2019, algorithm 1. Run it from the folder of this file::

    fedlab run fedavg-digits strategy=own_strategy:SPEC own_strategy.step=0.01 rounds=10 client.steps=10
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from fedlab.config.schema import Config
from fedlab.strategies import local_training, protocol, validation
from fedlab.strategies.base import BaseStrategy
from fedlab.training import Progress
from fedlab.workload import Workload


@dataclass(frozen=True)
class Options:
    """Options of the strategy."""

    step: float = field(default=0.003, metadata={"description": "how far the server moves each weight in a round"})


class SignSGD(BaseStrategy):
    """Server: a majority vote on the sign of every weight's change."""

    def __init__(self, workload: Workload, config: Config, progress: Progress) -> None:
        self.workload, self.arrays = workload, dict[str, Tensor]()
        self.options: Options = config.strategy

    def initialize(self) -> ArrayRecord:
        self.arrays = dict(self.workload.model().state_dict())
        return ArrayRecord(self.arrays)

    def check(self, reply: Message) -> None:
        signs = {name: torch.ones_like(tensor, dtype=torch.int8) for name, tensor in self.arrays.items()}
        validation.validate_arrays(reply.content, protocol.ARRAYS, signs, max_norm_ratio=1.0, signed=True)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord, MetricRecord | None]:
        votes = [protocol.arrays_of(reply.content) for reply in replies]
        for name, tensor in self.arrays.items():
            majority = torch.stack([vote[name] for vote in votes]).sum(0).sign()
            self.arrays[name] = (tensor + self.options.step * majority).to(tensor.dtype)
        return ArrayRecord(self.arrays), None

    def state(self) -> dict[str, dict[str, Tensor]]:
        return {"arrays": self.arrays}

    def restore(self, state: dict[str, dict[str, Tensor]]) -> None:
        self.arrays = dict(state["arrays"])


def train(workload: Workload, message: Message, context: protocol.ClientContext) -> RecordDict:
    work, sent = local_training.prepare(workload, message, context), protocol.arrays_of(message.content)
    trained = local_training.run(workload, work)
    signs = {name: (new.cpu() - sent[name]).sign().to(torch.int8) for name, new in trained.state.items()}
    metrics = protocol.metrics_record(protocol.drop_none(loss=trained.loss), len(work.data))
    return RecordDict({protocol.ARRAYS: ArrayRecord(signs), protocol.METRICS: metrics})


SPEC = protocol.StrategySpec(Options, SignSGD, protocol.ClientFunctions(train, protocol.evaluate), True)
