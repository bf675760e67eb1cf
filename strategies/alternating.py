"""Server side of strategies in which server and clients take turns: source steps, then the clients' steps.

A round: the server takes its source steps, on the same batches as ``source_only``; clients start from its averaged
(EMA) model and train in their own way; a rule of ``strategies/aggregation`` aggregates their models; the result is
tested, and the server continues from it. The clients' change is added to the server's last model as well, so that it
stays ahead of its average: with no client steps and one head this is ``source_only``.

**Metrics** of the server: ``loss``, the mean source loss of the round, and the rule's own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from copy import deepcopy
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from torch import Tensor

from fedlab.config.schema import Config
from fedlab.errors import ConfigError
from fedlab.privacy.accounting import PrivacyAccount
from fedlab.strategies.aggregation import ClientUpdate
from fedlab.strategies.base import BaseStrategy, Records, broadcast
from fedlab.strategies.model_updates import ModelUpdates
from fedlab.strategies.protocol import drop_none, tensor_record
from fedlab.strategies.source_only import SourceTrainer
from fedlab.training import Progress
from fedlab.workload import Workload


class Alternating(BaseStrategy):
    """Server side: source steps in turn with clients that upload whole models.

    Parameters
    ----------
    labeled
        True if clients have everything that the workload's loss reads.
    required, optional
        Metrics of a client, see :class:`fedlab.strategies.model_updates.ModelUpdates`.
    """

    def __init__(
        self,
        workload: Workload,
        config: Config,
        progress: Progress,
        *,
        labeled: bool = False,
        required: Collection[str] | None = None,
        optional: Collection[str] = (),
    ) -> None:
        self.updates = ModelUpdates(workload, config, labeled=labeled, required=required, optional=optional)
        self.rule = self.updates.rule
        self.trainer = SourceTrainer(workload, config, progress)
        self.loss: float | None = None

    def initialize(self) -> ArrayRecord:
        """Pre-train on the source and return the averaged model."""
        self.loss = self.trainer.pretrain()
        return tensor_record(self.trainer.average.state_dict())

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Run the round's source steps, and return the averaged model for every client."""
        self.loss = self.trainer.train(server_round, self.trainer.options.steps, "server")
        latest = tensor_record(self.trainer.average.state_dict())
        self.updates.send(latest, config)
        extra = self.extra_records(server_round)
        return broadcast(grid, MessageType.TRAIN, server_round, latest, config, extra=extra)

    def extra_records(self, server_round: int) -> Records:
        """Return what clients get beside the model; here nothing."""
        return {}

    def check(self, reply: Message) -> None:
        """Refuse a reply that is not a model like the one that was sent."""
        self.updates.check(reply)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the rule's new arrays, from which the server continues."""
        new = self.updates.aggregate(replies, server_round, self.client_weight)
        self._continue_from(new)
        return tensor_record(new), None

    def client_weight(self, update: ClientUpdate) -> float | None:
        """Return a client's weight in the mean; None: the rule says."""
        return None

    @torch.no_grad()
    def _continue_from(self, new: Mapping[str, Tensor]) -> None:
        """Set the averaged model to ``new``, and move the last model by the same change of its trainable arrays."""
        state, sent = deepcopy(self.trainer.model.state_dict()), self.updates.sent
        for name, tensor in new.items():
            here = tensor.to(state[name].device)
            moved = state[name] + (here - sent[name].to(here)) if name in self.rule.trainable else here
            state[name] = moved
        self.trainer.model.load_state_dict(state)
        self.trainer.average.load_state_dict(dict(new))

    def metrics(self) -> dict[str, float]:
        """Return the mean source loss of the round, and the rule's own metrics."""
        return {**drop_none(loss=self.loss), **self.rule.metrics()}

    def weighed_by(self) -> Mapping[str, float]:
        """Return those that the rule reads."""
        return self.rule.weighed_by

    def privacy(self) -> PrivacyAccount | None:
        """Return the rule's account."""
        return self.rule.privacy()

    def state(self) -> dict[str, Any]:
        """Return the states of the trainer and the rule."""
        return {"trainer": self.trainer.state(), "rule": self.rule.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the trainer and the rule."""
        self.trainer.restore(state["trainer"])
        self.rule.restore(state["rule"])


def check_classes(trainer: SourceTrainer, config: Config) -> None:
    """Refuse a workload without classes.

    Raises
    ------
    ConfigError
        When its labels are not integers, one for each example or each pixel, or it has none.
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
