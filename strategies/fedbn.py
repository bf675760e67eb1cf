"""FedBN: FedAvg in which every client has batch norms of its own.

**Source**: Li et al., FedBN: Federated Learning on Non-IID Features via Local Batch Normalization, ICLR 2021,
algorithm 1: everything but the batch norms is averaged.

**Departures**: (1) clients keep no state of the run, so a client's batch norms live on the server, by partition, and
are sent back to it in each message: a checkpoint is complete and a client can be replaced, and the server sees them, as
it does in FedAvg; (2) a client that has none yet, in its first round, starts from the mean of the others'; (3) those of
FedAvg. With a model without batch norms this is FedAvg.

**Metrics**: as FedAvg; each client is tested with its own batch norms.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedlab.config.schema import Config
from fedlab.models.batchnorm_stats import batch_norm_names
from fedlab.strategies import fedavg
from fedlab.strategies.base import Records, broadcast
from fedlab.strategies.protocol import (
    ARRAYS,
    SERVER_STEPS,
    ModelStates,
    StrategySpec,
    arrays_of,
    partition_by_node,
    tensor_record,
)
from fedlab.training import Progress
from fedlab.workload import Workload, blank_model


@dataclass(frozen=True)
class Options:
    """FedBN has no options of its own."""


class ClientNorms:
    """Each client's batch norms, stored for it on the server.

    Attributes
    ----------
    names
        Names of everything that belongs to a batch norm.
    norms
        Arrays of these names by partition.
    """

    def __init__(self, workload: Workload) -> None:
        self.names = batch_norm_names(blank_model(workload))
        self.norms: dict[int, dict[str, Tensor]] = {}
        self.partition_of: Mapping[int, int] = {}

    def broadcast(
        self, grid: Grid, message_type: str, server_round: int, arrays: ArrayRecord, config: ConfigRecord
    ) -> list[Message]:
        """Return for each client the global arrays with its own batch norms."""
        self.partition_of = partition_by_node(grid)
        own = partial(self._with_norms, arrays)
        return broadcast(grid, message_type, server_round, arrays, config, per_client=own)

    def store(self, reply: Message) -> Message:
        """Store a client's batch norms and return its reply."""
        arrays = arrays_of(reply.content)
        self.norms[self.partition_of[reply.metadata.src_node_id]] = {name: arrays[name] for name in self.names}
        return reply

    def _with_norms(self, arrays: ArrayRecord, partition: int) -> Records:
        if partition not in self.norms:
            return {}
        return {ARRAYS: tensor_record({**arrays_of(RecordDict({ARRAYS: arrays})), **self.norms[partition]})}


class FedBN(fedavg.FedAvg):
    """Server side: FedAvg, and each client's batch norms stored for it."""

    def __init__(self, workload: Workload, config: Config, progress: Progress) -> None:
        super().__init__(workload, config, progress)
        self.clients = ClientNorms(workload)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return for each client the global arrays with its own batch norms."""
        self.updates.send(arrays, config)
        return self.clients.broadcast(grid, MessageType.TRAIN, server_round, arrays, config)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Store each client's batch norms and return the mean."""
        return super().aggregate_train(server_round, map(self.clients.store, replies))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return for each client the global arrays with its own batch norms."""
        return self.clients.broadcast(grid, MessageType.EVALUATE, server_round, arrays, config)

    def state(self) -> dict[str, Any]:
        """Return the clients' batch norms."""
        return {"norms": self.clients.norms}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the clients' batch norms."""
        self.clients.norms = dict(state["norms"])


def states_from_checkpoint(
    workload: Workload, checkpoint: Mapping[str, Any], partition: int, config: Config
) -> ModelStates:
    """Return a client's model from the server's checkpoint: the global arrays with the client's batch norms."""
    return {ARRAYS: {**checkpoint[ARRAYS], **checkpoint["strategy"]["norms"].get(partition, {})}}


SPEC: StrategySpec = StrategySpec(
    Options,
    FedBN,
    replace(fedavg.clients(), states_from_checkpoint=states_from_checkpoint),
    needs_client_labels=True,
    ignores=SERVER_STEPS,
)
