"""The server half of strategies in which server and clients take turns: source steps, then the clients' steps.

A round: the server takes its source steps, on the very batches that ``source_only`` takes; clients start from its
averaged (EMA) model and train in their own way; a rule of ``strategies/aggregation`` puts their models together;
these are tested, and the server goes on from them. What clients changed is added to the server's last model as well,
so that it keeps its lead over its average: with no client steps and one head this is ``source_only``.

**Metrics** of the server: ``loss``, the mean source loss of the round, and what the rule measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from torch import Tensor

from fedlab.config.schema import Config
from fedlab.errors import ConfigError
from fedlab.strategies import aggregation as aggregations
from fedlab.strategies import fedavg
from fedlab.strategies.protocol import drop_none
from fedlab.strategies.source_only import SourceTrainer
from fedlab.training import Progress
from fedlab.workload import Workload


class Alternating(fedavg.FedAvg):
    """Source steps in turn with clients that upload whole models.

    Parameters
    ----------
    labelled
        Whether clients have labels.
    """

    def __init__(
        self, workload: Workload, config: Config, progress: Progress, *, labelled: bool = False
    ) -> None:
        super().__init__(workload, config, progress, labelled=labelled)
        self.trainer = SourceTrainer(workload, config, progress)
        self.loss: float | None = None

    def initialize(self) -> ArrayRecord:
        """Pre-train on the source."""
        self.loss = self.trainer.pretrain()
        return ArrayRecord(self.trainer.average.state_dict())

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The round's source steps, and the averaged model to every client."""
        self.loss = self.trainer.train(server_round, self.trainer.options.steps, "server")
        latest = ArrayRecord(self.trainer.average.state_dict())
        return super().configure_train(server_round, latest, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The rule's new arrays, from which the server goes on."""
        new = self.rule.aggregate(self.sent, aggregations.client_updates(replies), server_round)
        self._take(new)
        return ArrayRecord(new), None

    @torch.no_grad()
    def _take(self, new: Mapping[str, Tensor]) -> None:
        """The averaged model becomes ``new``; the last one moves as far as it did, and takes its statistics."""
        state = deepcopy(self.trainer.model.state_dict())
        for name, tensor in new.items():
            here = tensor.to(state[name].device)
            moved = state[name] + (here - self.sent[name].to(here)) if name in self.rule.trainable else here
            state[name] = moved
        self.trainer.model.load_state_dict(state)
        self.trainer.average.load_state_dict(dict(new))

    def metrics(self) -> dict[str, float]:
        """Source loss, and what the rule measured."""
        return {**drop_none(loss=self.loss), **self.rule.metrics()}

    def state(self) -> dict[str, Any]:
        """The trainer and the rule."""
        return {"trainer": self.trainer.state(), "rule": self.rule.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        self.trainer.restore(state["trainer"])
        self.rule.restore(state["rule"])


def check_classes(trainer: SourceTrainer, config: Config) -> None:
    """Refuse a workload that does not tell classes apart.

    Raises
    ------
    ConfigError
        When its labels are not whole numbers, one for each example or each of its pixels, or it has none.
    """
    columns, core = trainer.source.columns, config.run
    if not {"x", "y"} <= columns.keys():
        raise ConfigError(
            f"{core.strategy} needs inputs x and one class y for each; workload {core.workload!r} has "
            f"{', '.join(columns)}"
        )
    labels = columns["y"]
    if labels.is_floating_point():
        raise ConfigError(
            f"{core.strategy} needs one class for each example; the labels of workload {core.workload!r} are "
            f"{labels.dtype} of shape {tuple(labels.shape)}"
        )
