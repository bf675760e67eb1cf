"""FedBN: FedAvg in which every client keeps batch norms of its own.

**Source**: Li et al., FedBN: Federated Learning on Non-IID Features via Local Batch Normalization, ICLR 2021,
algorithm 1: all but the batch norms is averaged.

**Departures**: (1) clients keep no state of the run, so a client's batch norms live on the server, by partition, and
come back to it in each message: a checkpoint is complete and a client can be replaced, and the server sees them, as
it does in FedAvg; (2) a client that has none yet, the first time, starts from the mean of the others'; (3) those of
FedAvg. With a model without batch norms this is FedAvg.

**Metrics**: as FedAvg; each client is tested with its own batch norms.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedlab.config.schema import Config
from fedlab.models.batchnorm_stats import batch_norm_names
from fedlab.seeds import seeded
from fedlab.strategies import fedavg
from fedlab.strategies.protocol import (
    ARRAYS,
    ClientFunctions,
    ModelStates,
    StrategySpec,
    arrays_of,
    evaluate,
    partition_by_node,
)
from fedlab.training import Progress
from fedlab.workload import Workload


@dataclass(frozen=True)
class Options:
    """FedBN has no options of its own."""


class FedBN(fedavg.FedAvg):
    """Server half: FedAvg, and each client's batch norms put aside for it."""

    def __init__(self, workload: Workload, config: Config, progress: Progress) -> None:
        super().__init__(workload, config, progress)
        with seeded("names of a model"):
            self.names = batch_norm_names(workload.model())
        self.norms: dict[int, dict[str, Tensor]] = {}
        self.partition_of: Mapping[int, int] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """To each client the global arrays with its own batch norms."""
        self.partition_of = partition_by_node(grid)
        return self._own(super().configure_train(server_round, arrays, config, grid))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The mean; of each client its batch norms."""
        received = list(replies)
        for reply in received:
            arrays = arrays_of(reply.content)
            self.norms[self.partition_of[reply.metadata.src_node_id]] = {name: arrays[name] for name in self.names}
        return super().aggregate_train(server_round, received)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As for training."""
        self.partition_of = partition_by_node(grid)
        return self._own(super().configure_evaluate(server_round, arrays, config, grid))

    def _own(self, messages: Iterable[Message]) -> list[Message]:
        found = list(messages)
        for message in found:
            own = self.norms.get(self.partition_of[message.metadata.dst_node_id])
            if own is not None:
                arrays = ArrayRecord({**arrays_of(message.content), **own})
                message.content = RecordDict({**message.content, ARRAYS: arrays})
        return found

    def state(self) -> dict[str, Any]:
        """The clients' batch norms."""
        return {"norms": self.norms}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        self.norms = dict(state["norms"])


def states_from_checkpoint(workload: Workload, checkpoint: Mapping[str, Any], partition: int, config: Config) -> ModelStates:
    """What predicts on a client, from the server's checkpoint: the global model with its batch norms."""
    return {ARRAYS: {**checkpoint[ARRAYS], **checkpoint["strategy"]["norms"].get(partition, {})}}


SPEC: StrategySpec = StrategySpec(
    Options,
    FedBN,
    ClientFunctions(fedavg.train, evaluate, states_from_checkpoint=states_from_checkpoint),
    needs_client_labels=True,
)
