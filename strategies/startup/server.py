"""STARTUP's server half: lines 1 to 4 and 9 of the pseudo-code; in the centralized setting line 7 too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from torch import Tensor, nn

from fedlab.config.schema import Config, RunConfig
from fedlab.data.dataset import ArrayDataset
from fedlab.errors import ConfigError
from fedlab.models.feature_classifier import features_of, head_of, missing_parts
from fedlab.seeds import seeded
from fedlab.strategies import aggregation, validation
from fedlab.strategies.protocol import ARRAYS, CONFIG, EXAMPLES, METRICS, ROUND, client_metrics, drop_none, is_final
from fedlab.strategies.source_only import SourceTrainer
from fedlab.strategies.startup.shared import (
    TEACHER,
    Options,
    Student,
    StudentWorkload,
    SupportsViews,
    TargetLoss,
    ramp_up,
    schedule,
    sgd,
)
from fedlab.training import Progress, ema_update, train_steps
from fedlab.workload import Workload


class Startup(FlowerFedAvg):
    """Lines 1 to 4 and 9; in the centralized setting line 7 too."""

    def __init__(self, workload: Workload, config: Config, progress: Progress) -> None:
        super().__init__(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
        self.workload, self.progress = workload, progress
        self.config = config
        self.core: RunConfig = config.run
        self.options: Options = config.strategy
        self.local = config.client
        self.trainer = SourceTrainer(workload, config, progress)
        check_serves(workload, self.trainer.model, self.core.workload)
        self.student_workload = StudentWorkload(workload, self.options.contrastive_weight > 0)
        self.rule = aggregation.make(self.student_workload, config, labelled=False)
        self.teacher = self.trainer.average
        self.student = self.begin()
        self._metrics: dict[str, float] = {}

    def begin(self) -> Student:
        """Line 1, behind the teacher: the student before the first round."""
        with seeded(self.core.seed, "student"):
            student = self.student_workload.model()
        if self.options.start != "fresh":
            features_of(student.model).load_state_dict(features_of(self.teacher).state_dict())
        if self.options.start == "whole":
            head_of(student.model).load_state_dict(head_of(self.teacher).state_dict())
        return student.to(self.trainer.device)

    def initialize(self) -> ArrayRecord:
        """Line 1."""
        self._metrics = drop_none(loss=self.trainer.pretrain())
        self.student = self.begin()
        return ArrayRecord(self.student.model.state_dict())

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Lines 3 and 4; no message where clients have nothing to do."""
        self._metrics = {}
        federated = self.options.setting == "federated"
        if not federated or not self.local.steps:
            self._steps(server_round, None if federated else self._pooled_loss())
            return []
        self._steps(server_round, None)
        config[ROUND] = server_round
        config.update(self.rule.client_config())
        records: dict[str, ArrayRecord | MetricRecord | ConfigRecord] = {
            ARRAYS: ArrayRecord(self.student.state_dict()),
            CONFIG: config,
        }
        if self.options.distillation_loss != "none":
            records[TEACHER] = ArrayRecord(self.teacher.state_dict())
        return self._construct_messages(RecordDict(records), list(grid.get_node_ids()), "train")

    def _steps(self, server_round: int, extra_loss: TargetLoss | None) -> None:
        """Line 3; with ``extra_loss`` line 7 in the same steps."""
        options, rounds = self.options, self.core.rounds
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
            sgd(self.student, schedule(self.trainer.options.learning_rate, server_round, rounds)),
            self.trainer.options.steps,
            name="server",
            progress=self.progress,
            after_step=extra_loss.after_step if extra_loss else None,
        )
        self._metrics |= drop_none(loss=mean)

    def _pooled_loss(self) -> TargetLoss | None:
        """The centralized setting: one owner of every client's images."""
        clients = range(self.config.data.num_clients or len(self.workload.clients))
        data = ArrayDataset({"x": torch.cat([self.workload.data(partition, "train")[:]["x"] for partition in clients])})
        found = TargetLoss(self.workload, self.options, self.student, self.teacher, data, self.local.batch_size)
        return None if found.empty else found

    def check(self, reply: Message) -> None:
        """Refuse a reply that is no student like the one that was sent."""
        validation.validate_arrays(reply.content, ARRAYS, self.student.state_dict(), self.config.comm.max_update_norm_ratio)
        metrics, expected = client_metrics(reply), {EXAMPLES, "loss", *self.rule.expected_metrics}
        if set(reply.content) != {ARRAYS, METRICS, CONFIG} or not expected - {"loss"} <= metrics.keys() <= expected:
            came = sorted(reply.content), sorted(metrics)
            raise validation.InvalidUpdate(f"its records and metrics are {came}; expected a student and {sorted(expected)}")
        if reason := self.rule.validate_metrics(metrics):
            raise validation.InvalidUpdate(reason)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Line 9; a moving teacher moves by all the clients' steps at once."""
        updates = aggregation.client_updates(replies)
        if updates:
            sent = {name: tensor.cpu() for name, tensor in self.student.state_dict().items()}
            self.student.load_state_dict(self.rule.aggregate(sent, updates, server_round))
            if self.options.teacher_ema:
                ema_update(self.teacher, self.student.model, self.options.teacher_ema**self.local.steps)
            self._metrics |= self.rule.metrics()
        losses = [one.metrics["loss"] for one in updates if "loss" in one.metrics]
        if losses:
            self._metrics["client_loss"] = sum(losses) / len(losses)
        return ArrayRecord(self.student.model.state_dict()), None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Before the first round, after the last, and every ``evaluate_every`` rounds: episodes cost time."""
        every = self.options.evaluate_every
        final = is_final(server_round, self.core.rounds, config)
        if server_round == 0 or final or (every and server_round % every == 0):
            return super().configure_evaluate(server_round, arrays, config, grid)
        return []

    def metrics(self) -> dict[str, float]:
        """Losses of the last round."""
        return self._metrics

    def events(self) -> list[dict[str, Any]]:
        """Nothing to tell."""
        return []

    def state(self) -> dict[str, Any]:
        """Teacher, student and what the rule remembers; the optimisers of steps live within a round."""
        return {
            "teacher": self.teacher.state_dict(),
            "student": self.student.state_dict(),
            "rule": self.rule.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take a state back."""
        self.teacher.load_state_dict(state["teacher"])
        self.student.load_state_dict(state["student"])
        self.rule.restore(state["rule"])


def check_serves(workload: Workload, model: nn.Module, name: str) -> None:
    """Refuse what cannot be taught this way.

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
