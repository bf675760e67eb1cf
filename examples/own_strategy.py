"""A strategy of one's own with something else on the wire: signSGD, in which clients send one sign for each weight.

The server moves every weight by a step in the direction that most clients voted for, so an upload is a quarter of
FedAvg's. Source: Bernstein et al., signSGD with majority vote, ICLR 2019, algorithm 1. Run it from this folder::

    fedlab run fedavg-digits strategy=own_strategy:SPEC own_strategy.step=0.003 rounds=2
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from fedlab.config.schema import Config
from fedlab.strategies import fedavg, validation
from fedlab.strategies.base import BaseStrategy
from fedlab.strategies.protocol import (
    ARRAYS,
    METRICS,
    ClientContext,
    ClientFunctions,
    StrategySpec,
    arrays_of,
    client_dataset,
    evaluate,
    metrics_record,
)  # fmt: skip
from fedlab.workload import Workload


@dataclass(frozen=True)
class Options:
    """Options of the strategy."""

    step: float = field(default=0.003, metadata={"description": "how far the server moves each weight in a round"})


class SignSGD(BaseStrategy):
    """Server: a model, and a majority vote on the sign of every weight's change."""

    def __init__(self, workload: Workload, config: Config, progress: Any) -> None:
        self.arrays: dict[str, Tensor] = dict(workload.model().state_dict())
        self.step: float = config.strategy.step

    def initialize(self) -> ArrayRecord:
        return ArrayRecord(self.arrays)

    def check(self, reply: Message) -> None:
        signs = {name: torch.zeros_like(tensor, dtype=torch.int8) for name, tensor in self.arrays.items()}
        validation.validate_arrays(reply.content, ARRAYS, signs, norm_limit=0.0)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord, MetricRecord | None]:
        votes = [arrays_of(reply.content) for reply in replies]
        for name, tensor in self.arrays.items():
            self.arrays[name] = tensor + self.step * torch.stack([vote[name] for vote in votes]).sum(0).sign()
        return ArrayRecord(self.arrays), None


def train(workload: Workload, message: Message, context: ClientContext) -> RecordDict:
    data, sent = client_dataset(workload, context, "train"), arrays_of(message.content)
    model, loss = fedavg.local_training(workload, message, context, data)
    signs = {name: (new.cpu() - sent[name]).sign().to(torch.int8) for name, new in model.state_dict().items()}
    return RecordDict({ARRAYS: ArrayRecord(signs), METRICS: metrics_record({"loss": loss or 0.0}, len(data))})


SPEC = StrategySpec(Options, SignSGD, ClientFunctions(train, evaluate), needs_client_labels=True)
