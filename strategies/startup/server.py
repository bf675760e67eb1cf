"""STARTUP's server half: lines 1 to 4 and 9 of the pseudo-code; in the centralised setting line 7 too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from torch import Tensor, nn

from fedlab.config.schema import ClientTraining, Core, Flat, build
from fedlab.data.dataset import ArrayDataset
from fedlab.errors import ConfigError
from fedlab.models.feature_classifier import features_of, head_of, missing_parts
from fedlab.seeds import seeded
from fedlab.strategies import aggregation, validation
from fedlab.strategies.protocol import ARRAYS, CONFIG, EXAMPLES, METRICS, ROUND, client_metrics, is_final, known
from fedlab.strategies.source_only import SourceTrainer
from fedlab.strategies.startup.shared import TEACHER, Knobs, Student, TargetLoss, Uploaded, Views, raised, schedule, sgd
from fedlab.training import Progress, follow, optimise
from fedlab.workload import Workload


class Startup(FlowerFedAvg):
    """Lines 1 to 4 and 9; in the centralised setting line 7 too."""

    def __init__(self, workload: Workload, flat: Flat, progress: Progress) -> None:
        super().__init__(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
        self.workload, self.progress = workload, progress
        self.core, self.knobs = build(Core, "", flat), build(Knobs, "startup", flat)
        self.local = build(ClientTraining, "client", flat)
        self.trainer = SourceTrainer(workload, flat, progress)
        check_serves(workload, self.trainer.model, self.core.workload)
        self.uploaded = Uploaded(workload, self.knobs.contrastive > 0)
        self.rule = aggregation.make(self.knobs.aggregation, self.uploaded, flat, labelled=False)
        self.teacher = self.trainer.average
        self.student = self.begin()
        self.measured: dict[str, float] = {}

    def begin(self) -> Student:
        """Line 1, behind the teacher: the student before the first round."""
        with seeded(self.core.seed, "student"):
            student = self.uploaded.model()
        if self.knobs.start != "fresh":
            features_of(student.model).load_state_dict(features_of(self.teacher).state_dict())
        if self.knobs.start == "whole":
            head_of(student.model).load_state_dict(head_of(self.teacher).state_dict())
        return student.to(self.trainer.device)

    def initialise(self) -> ArrayRecord:
        """Line 1."""
        self.measured = known(loss=self.trainer.pretrain())
        self.student = self.begin()
        return ArrayRecord(self.student.model.state_dict())

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Lines 3 and 4; no message where clients have nothing to do."""
        self.measured = {}
        federated = self.knobs.setting == "federated"
        if not federated or not self.local.steps:
            self._steps(server_round, None if federated else self._everybodys())
            return []
        self._steps(server_round, None)
        config[ROUND] = server_round
        config.update(self.rule.asks())
        records: dict[str, ArrayRecord | MetricRecord | ConfigRecord] = {
            ARRAYS: ArrayRecord(self.student.state_dict()),
            CONFIG: config,
        }
        if self.knobs.soft != "none":
            records[TEACHER] = ArrayRecord(self.teacher.state_dict())
        return self._construct_messages(RecordDict(records), list(grid.get_node_ids()), "train")

    def _steps(self, server_round: int, beside: TargetLoss | None) -> None:
        """Line 3; with ``beside`` line 7 in the same steps."""
        knobs, rounds = self.knobs, self.core.rounds
        steps = iter(range(self.trainer.knobs.steps))

        def loss() -> Tensor:
            step = next(steps)
            value = torch.zeros((), device=self.trainer.device)
            if knobs.base:
                batch = self.trainer.batch(server_round, step)
                value = value + knobs.base * self.workload.loss(self.student.model, batch)
            if beside:
                with seeded(self.core.seed, "target", server_round, step):
                    value = value + beside(raised(server_round, rounds) if knobs.ramp else 1.0)
            return value

        if not knobs.base and beside is None:
            return
        self.student.train()
        mean = optimise(
            loss,
            sgd(self.student, schedule(self.trainer.knobs.learning_rate, server_round, rounds)),
            self.trainer.knobs.steps,
            name="server",
            progress=self.progress,
            after_step=beside.after_step if beside else None,
        )
        self.measured |= known(loss=mean)

    def _everybodys(self) -> TargetLoss | None:
        """The centralised setting: one owner of every client's images."""
        clients = range(self.core.clients or len(self.workload.clients))
        data = ArrayDataset({"x": torch.cat([self.workload.data(partition, "train")[:]["x"] for partition in clients])})
        found = TargetLoss(self.workload, self.knobs, self.student, self.teacher, data, self.local.batch)
        return None if found.empty else found

    def check(self, reply: Message) -> None:
        """Refuse a reply that is no student like the one that was sent."""
        validation.arrays(reply.content, ARRAYS, self.student.state_dict(), self.core.norm_limit)
        metrics, expected = client_metrics(reply), {EXAMPLES, "loss", *self.rule.measures}
        if set(reply.content) != {ARRAYS, METRICS, CONFIG} or not expected - {"loss"} <= metrics.keys() <= expected:
            came = sorted(reply.content), sorted(metrics)
            raise validation.Refused(f"its records and metrics are {came}; expected a student and {sorted(expected)}")
        if reason := self.rule.doubt(metrics):
            raise validation.Refused(reason)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Line 9; a moving teacher moves by all the clients' steps at once."""
        given = aggregation.contributions(replies)
        if given:
            sent = {name: tensor.cpu() for name, tensor in self.student.state_dict().items()}
            self.student.load_state_dict(self.rule.aggregate(sent, given, server_round))
            if self.knobs.moving:
                follow(self.teacher, self.student.model, self.knobs.moving**self.local.steps)
            self.measured |= self.rule.metrics()
        losses = [one.metrics["loss"] for one in given if "loss" in one.metrics]
        if losses:
            self.measured["client_loss"] = sum(losses) / len(losses)
        return ArrayRecord(self.student.model.state_dict()), None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Before the first round, after the last, and every ``evaluate_every`` rounds: episodes cost time."""
        every = self.knobs.evaluate_every
        final = is_final(server_round, self.core.rounds, config)
        if server_round == 0 or final or (every and server_round % every == 0):
            return super().configure_evaluate(server_round, arrays, config, grid)
        return []

    def metrics(self) -> dict[str, float]:
        """Losses of the last round."""
        return self.measured

    def notes(self) -> list[dict[str, Any]]:
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
    if not isinstance(workload, Views):
        raise ConfigError(f"startup needs a workload that makes views of its inputs; {name!r} has no method 'view'")
