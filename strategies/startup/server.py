"""STARTUP's server side: lines 1 to 4 and 9 of the pseudo-code; in the centralized setting line 7 too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from torch import Tensor, nn

from fedlab.config.schema import Config
from fedlab.data.dataset import ArrayDataset
from fedlab.errors import ConfigError
from fedlab.models.feature_classifier import features_of, head_of, missing_parts
from fedlab.privacy.accounting import PrivacyAccount
from fedlab.seeds import seeded
from fedlab.strategies.base import BaseStrategy, broadcast
from fedlab.strategies.model_updates import ModelUpdates
from fedlab.strategies.protocol import EXAMPLES, client_metrics, drop_none, is_final, tensor_record
from fedlab.strategies.source_only import SourceTrainer
from fedlab.strategies.startup.shared import (
    TEACHER,
    Student,
    StudentWorkload,
    TargetLoss,
    ramp_up,
    schedule,
    sgd,
)
from fedlab.training import MovingAverage, Progress, train_steps
from fedlab.workload import SupportsViews, Workload


class Startup(BaseStrategy):
    """Lines 1 to 4 and 9; in the centralized setting line 7 too.

    Raises
    ------
    ConfigError
        When the workload or its model cannot be taught this way.
    """

    def __init__(self, workload: Workload, config: Config, progress: Progress) -> None:
        self.workload, self.progress = workload, progress
        self.core, self.options = config.run, config.strategy
        self.local, self.num_clients = config.client, len(config.clients)
        self.trainer = SourceTrainer(workload, config, progress)
        check_serves(workload, self.trainer.model, self.core.workload)
        self.student_workload = StudentWorkload(workload, self.options.contrastive_weight > 0)
        self.updates = ModelUpdates(self.student_workload, config, labeled=False, required=[], optional=["loss"])
        self.teacher = self.trainer.average
        self.student = self.initial_student()
        self._metrics: dict[str, float] = {}

    def initial_student(self) -> Student:
        """Return the student before the first round, from the teacher (line 1)."""
        with seeded(self.core.seed, "student"):
            student = self.student_workload.model()
        if self.options.start != "fresh":
            features_of(student.model).load_state_dict(features_of(self.teacher).state_dict())
        if self.options.start == "whole":
            head_of(student.model).load_state_dict(head_of(self.teacher).state_dict())
        return student.to(self.trainer.device)

    def initialize(self) -> ArrayRecord:
        """Train the teacher, and return the initial student's model (line 1)."""
        self._metrics = drop_none(loss=self.trainer.pretrain())
        self.student = self.initial_student()
        return tensor_record(self.student.model.state_dict())

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Run line 3 and return line 4's messages; none if clients have nothing to do."""
        self._metrics = {}
        federated = self.options.setting == "federated"
        if not federated or not self.local.trains:
            self._steps(server_round, None if federated else self._pooled_loss())
            return []
        self._steps(server_round, None)
        student = tensor_record(self.student.state_dict())
        self.updates.send(student, config)
        extra = {TEACHER: tensor_record(self.teacher.state_dict())} if self.options.distillation_loss != "none" else {}
        return broadcast(grid, MessageType.TRAIN, server_round, student, config, extra=extra)

    def _steps(self, server_round: int, extra_loss: TargetLoss | None) -> None:
        """Run line 3; with ``extra_loss`` line 7 in the same steps."""
        options, rounds = self.options, self.core.rounds
        rate = self.trainer.options.at_round(server_round, rounds).learning_rate
        steps = iter(range(self.trainer.options.steps))

        def loss() -> Tensor:
            step = next(steps)
            value = torch.zeros((), device=self.trainer.device)
            if options.base_weight:
                batch = self.trainer.batch_at(server_round, step)
                value = value + options.base_weight * self.workload.loss(self.student.model, batch)
            if extra_loss:
                with seeded(self.core.seed, "target", server_round, step):
                    value = value + extra_loss(ramp_up(server_round, rounds) if options.distillation_warmup else 1.0)
            return value

        if not options.base_weight and extra_loss is None:
            return
        self.student.train()
        mean = train_steps(
            loss,
            sgd(self.student, schedule(rate, server_round, rounds)),
            self.trainer.options.steps,
            name="server",
            progress=self.progress,
            after_step=extra_loss.after_step if extra_loss else None,
        )
        self._metrics |= drop_none(loss=mean)

    def _pooled_loss(self) -> TargetLoss | None:
        """Return line 7's loss on all clients' images, for the centralized setting; None if it has no term."""
        data = ArrayDataset(
            {"x": torch.cat([self.workload.data(partition, "train")[:]["x"] for partition in range(self.num_clients)])}
        )
        loss = TargetLoss(self.workload, self.options, self.student, self.teacher, data, self.local.batch_size)
        return None if loss.empty else loss

    def check(self, reply: Message) -> None:
        """Refuse a reply that is not a student like the one that was sent."""
        self.updates.check(reply)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate the students (line 9); a moving teacher moves by all the clients' steps at once."""
        losses: list[float] = []
        steps: list[int] = []

        def counted() -> Iterator[Message]:
            for reply in replies:
                metrics = client_metrics(reply)
                losses.extend(value for name, value in metrics.items() if name == "loss")
                steps.append(self.local.local_steps(int(metrics[EXAMPLES])))
                yield reply

        if self.updates.sent:
            self.student.load_state_dict(self.updates.aggregate(counted(), server_round))
            if self.options.teacher_ema:
                decay = self.options.teacher_ema ** (sum(steps) / len(steps))
                MovingAverage(self.teacher, self.student.model, decay).update()
            self._metrics |= self.updates.rule.metrics()
        if losses:
            self._metrics["client_loss"] = sum(losses) / len(losses)
        return tensor_record(self.student.model.state_dict()), None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return messages in round 0, in the last and every ``evaluate_every`` rounds: episodes take long."""
        every = self.options.evaluate_every
        final = is_final(server_round, self.core.rounds, config)
        if server_round == 0 or final or (every and server_round % every == 0):
            return super().configure_evaluate(server_round, arrays, config, grid)
        return []

    def metrics(self) -> dict[str, float]:
        """Return the losses of the last round, and the rule's own metrics."""
        return self._metrics

    def weighed_by(self) -> Mapping[str, float]:
        """Return those that the rule reads."""
        return self.updates.rule.weighed_by

    def privacy(self) -> PrivacyAccount | None:
        """Return the rule's account."""
        return self.updates.rule.privacy()

    def state(self) -> dict[str, Any]:
        """Return the states of teacher, student and rule; the optimizers live within a round."""
        return {
            "teacher": self.teacher.state_dict(),
            "student": self.student.state_dict(),
            "rule": self.updates.rule.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore teacher, student and rule."""
        self.teacher.load_state_dict(state["teacher"])
        self.student.load_state_dict(state["student"])
        self.updates.rule.restore(state["rule"])


def check_serves(workload: Workload, model: nn.Module, name: str) -> None:
    """Refuse a workload or model that STARTUP cannot train.

    Raises
    ------
    ConfigError
        When the model has no features and linear head, or the workload no views.
    """
    if missing_parts(model) or not isinstance(head_of(model), nn.Linear):
        raise ConfigError(
            f"startup needs a model with .features and a linear .head; {type(model).__name__} of workload {name!r} "
            "has no such parts; use source_only, or another workload (see `fedlab list`)"
        )
    if not isinstance(workload, SupportsViews):
        raise ConfigError(f"startup needs a workload that makes views of its inputs; {name!r} has no method 'view'")
