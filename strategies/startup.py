"""STARTUP: a teacher of the base classes labels each client's images softly, and a student learns from both.

```
1  server: train the teacher on the labelled base; student <- its backbone, a fresh head, a projector
2  repeat
3    server, R_s times:  student <- SGD on  base * CE(base batch)
4    broadcast student and teacher
5    client i:  q <- softmax(teacher(x)) for its images x, once
6      R_c times:  two views x', x'' of a batch
7        student <- SGD on  distil * mean of KL(q, p(x')) and KL(q, p(x''))  +  contrastive * NT-Xent(x', x'')
8      upload the student
9    server: student <- mean of the students, weighted by images
```
With ``startup.setting=centralised`` the server takes lines 3 and 7 as one step on all clients' images: the paper's
method, for simulation only. The ingredients are knobs, so baselines are the same file: no line 7 is transfer,
``soft=none`` is transfer + SimCLR, ``base=0`` besides is SimCLR on the target. ``moving`` > 0 lets the teacher follow
the student, and with ``sharpness=10`` and ``start=whole`` that is Dynamic Distillation.

**Source**: Phoo and Hariharan, Self-training for Few-shot Transfer Across Extreme Task Differences, ICLR 2021, section
4 and published code; Islam et al., Dynamic Distillation Network for Cross-Domain Few-Shot Recognition with Unlabeled
Data, NeurIPS 2021. Neither is federated.

**Departures**: (1) federated: base and target losses alternate, server and clients, instead of one sum; (2) a fixed
number of steps and a cosine from the first step size to 0 over the rounds, instead of a search over step sizes, a
plateau rule and the best of many checkpoints by validation loss; (3) batches are drawn with replacement; (4) momentum
starts anew each round; (5) the moving teacher sees one weak view and teaches both strong ones, in evaluation mode, and
on the server it moves once a round by as much as the clients' steps weigh.

**The teacher travels with every message**, and the soft labels stay where they are made. That is one model more a round
on the way down. Soft labels that came back with each message would be fewer bytes, but then the server would hold the
teacher's opinion of every image of a client.

**Metrics**: ``loss`` is the mean base loss of the round, ``client_loss`` the clients' mean of line 7. Clients test in
round 0 (with ``start`` at its default, that is transfer), every ``evaluate_every`` rounds and after the last.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from fedlab.config import ClientTraining, Core, Flat, Rate, Weight, build
from fedlab.data.examples import Examples
from fedlab.errors import ConfigError
from fedlab.losses.ntxent import nt_xent
from fedlab.losses.soft_labels import DIVERGENCES, shuffled, soften
from fedlab.models.split import features_of, head_of, missing_parts
from fedlab.seeds import seeded
from fedlab.training import Progress, follow, optimise, pick_device
from fedlab.workload import Workload
from strategies import screening
from strategies.protocol import (
    ARRAYS,
    CONFIG,
    METRICS,
    ROUND,
    ClientHalf,
    Entry,
    arrays_of,
    client_metrics,
    evaluate,
    known,
    load,
    metrics_record,
    own_data,
    round_of,
)
from strategies.source_only import SourceTrainer

TEACHER = "teacher"
EMBEDDING = 128  # width of what NT-Xent compares
MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4
BATCH = 500  # images at a time where nothing is learned


@dataclass(frozen=True)
class Knobs:
    """The ingredients of the student's loss, and how they are federated."""

    setting: Literal["federated", "centralised"] = Field(
        "federated", description="where the student learns; centralised: on the server, which sees all images"
    )
    start: Literal["backbone", "whole", "fresh"] = Field(
        "backbone", description="what the student takes from the teacher: features, head too, or nothing"
    )
    base: Weight = Field(1.0, description="weight of the cross-entropy on the base")
    soft: Literal["kl", "hard", "reverse_kl", "reverse_cross_entropy", "entropy", "none"] = Field(
        "kl", description="loss against the teacher's soft labels; the last four are for ablations"
    )
    shuffle: bool = Field(False, description="give each image another one's soft label: an ablation")
    distil: Weight = Field(1.0, description="weight of the loss against soft labels")
    contrastive: Weight = Field(1.0, description="weight of NT-Xent")
    temperature: Rate = Field(1.0, description="temperature of NT-Xent")
    moving: float = Field(0.0, ge=0, lt=1, description="decay a step of a teacher that follows the student; 0: fixed")
    sharpness: Rate = Field(1.0, description="inverse temperature of the soft labels")
    ramp: bool = Field(False, description="raise the weight of soft labels from 0 over the first rounds by a cosine")
    evaluate_every: int = Field(0, ge=0, description="rounds between tests; 0: before the first and after the last")


@runtime_checkable
class Views(Protocol):
    """What a workload offers that can be learned without labels."""

    def view(self, x: Tensor, weak: bool = False) -> Tensor:
        """A random view of each input."""
        ...


class Student(nn.Module):
    """A model and, where NT-Xent is used, the projector that it is taken behind."""

    def __init__(self, model: nn.Module, contrastive: bool) -> None:
        super().__init__()
        head = head_of(model)
        assert isinstance(head, nn.Linear)
        width = head.in_features
        self.model = model
        self.projector = nn.Sequential(
            *([nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, EMBEDDING)] if contrastive else [])
        )


class TargetLoss:
    """Line 7 on one owner's images, and lines 5 and 6 before it."""

    def __init__(
        self, workload: Workload, knobs: Knobs, student: Student, teacher: nn.Module | None, data: Examples, batch: int
    ) -> None:
        assert isinstance(workload, Views)
        self.view, self.knobs, self.student, self.data, self.batch = workload.view, knobs, student, data, batch
        self.device = next(student.parameters()).device
        self.teacher = teacher.requires_grad_(False).eval() if teacher and knobs.soft != "none" else None
        fixed = self.teacher is not None and not knobs.moving
        self.soft = torch.cat([self._label(x["x"]) for x in data.batches(BATCH)]) if fixed else None

    @torch.no_grad()
    def _label(self, x: Tensor) -> Tensor:
        assert self.teacher is not None
        return soften(self.teacher(x.to(self.device)), self.knobs.sharpness)

    def __call__(self, weight: float = 1.0) -> Tensor:
        """The loss of a fresh batch, a scalar; ``weight`` scales the part of the soft labels."""
        rows = torch.randint(len(self.data), (self.batch,))
        x = self.data[rows]["x"]
        z = features_of(self.student.model)(torch.cat([self.view(x), self.view(x)]).to(self.device))  # (2 batch, width)
        loss: Tensor = z.new_zeros(())
        if self.teacher is not None:
            soft = self.soft[rows.to(self.device)] if self.soft is not None else self._label(self.view(x, weak=True))
            soft = shuffled(soft) if self.knobs.shuffle else soft
            logits = head_of(self.student.model)(z)  # (2 batch, classes)
            loss = loss + weight * self.knobs.distil * DIVERGENCES[self.knobs.soft](logits, soft.repeat(2, 1))
        if self.knobs.contrastive:
            first, second = self.student.projector(z).chunk(2)
            loss = loss + self.knobs.contrastive * nt_xent(first, second, self.knobs.temperature)
        return loss

    def after_step(self) -> None:
        """A moving teacher takes its step behind the student."""
        if self.teacher is not None and self.knobs.moving:
            follow(self.teacher, self.student.model, self.knobs.moving)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to learn from."""
        return self.teacher is None and not self.knobs.contrastive


def schedule(rate: float, server_round: int, rounds: int) -> float:
    """Step size of a round: a cosine from ``rate`` towards 0."""
    return rate * (1 + math.cos(math.pi * (server_round - 1) / rounds)) / 2


def raised(server_round: int, rounds: int) -> float:
    """Dynamic Distillation's weight of soft labels in a round: min(1, 3/4 (1 - cos(pi t))) with t the share done."""
    return min(1.0, 0.75 * (1 - math.cos(math.pi * (server_round - 0.5) / rounds)))


def sgd(module: nn.Module, rate: float) -> torch.optim.SGD:
    """The published optimiser, fresh."""
    return torch.optim.SGD(module.parameters(), rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)


class Startup(FlowerFedAvg):
    """Lines 1 to 4 and 9; in the centralised setting line 7 too."""

    def __init__(self, workload: Workload, flat: Flat, progress: Progress) -> None:
        super().__init__(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
        self.workload, self.progress = workload, progress
        self.core, self.knobs = build(Core, "", flat), build(Knobs, "startup", flat)
        self.local = build(ClientTraining, "client", flat)
        self.trainer = SourceTrainer(workload, flat, progress)
        check_serves(workload, self.trainer.model, self.core.workload)
        self.teacher = self.trainer.average
        self.student = self.begin()
        self.measured: dict[str, float] = {}

    def begin(self) -> Student:
        """Line 1, behind the teacher: the student before the first round."""
        with seeded(self.core.seed, "student"):
            student = Student(self.workload.model(), self.knobs.contrastive > 0)
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
        data = Examples({"x": torch.cat([self.workload.data(partition, "train")[:]["x"] for partition in clients])})
        found = TargetLoss(self.workload, self.knobs, self.student, self.teacher, data, self.local.batch)
        return None if found.empty else found

    def check(self, reply: Message) -> None:
        """Refuse a reply that is no student like the one that was sent."""
        screening.arrays(reply.content, ARRAYS, self.student.state_dict(), self.core.norm_limit)
        if set(reply.content) != {ARRAYS, METRICS, CONFIG}:
            raise screening.Refused(f"its records are {sorted(reply.content)}; expected a student and its metrics")

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Line 9; a moving teacher moves by all the clients' steps at once."""
        replies = list(replies)
        arrays, _ = super().aggregate_train(server_round, replies) if replies else (None, None)
        if arrays is not None:
            self.student.load_state_dict(arrays_of(RecordDict({ARRAYS: arrays})))
            if self.knobs.moving:
                follow(self.teacher, self.student.model, self.knobs.moving**self.local.steps)
        losses = [metrics["loss"] for metrics in map(client_metrics, replies) if "loss" in metrics]
        if losses:
            self.measured["client_loss"] = sum(losses) / len(losses)
        return ArrayRecord(self.student.model.state_dict()), None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Before the first round, after the last, and every ``evaluate_every`` rounds: episodes cost time."""
        every = self.knobs.evaluate_every
        if server_round in (0, self.core.rounds) or (every and server_round % every == 0):
            return super().configure_evaluate(server_round, arrays, config, grid)
        return []

    def metrics(self) -> dict[str, float]:
        """Losses of the last round."""
        return self.measured

    def notes(self) -> list[dict[str, Any]]:
        """Nothing to tell."""
        return []

    def state(self) -> dict[str, Any]:
        """Teacher and student; optimisers live within a round."""
        return {"teacher": self.teacher.state_dict(), "student": self.student.state_dict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take a state back."""
        self.teacher.load_state_dict(state["teacher"])
        self.student.load_state_dict(state["student"])


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


def train(workload: Workload, message: Message, context: Context) -> RecordDict:
    """Client half: lines 5 to 8."""
    flat, server_round = context.run_config, round_of(message)
    core, knobs, local = build(Core, "", flat), build(Knobs, "startup", flat), build(ClientTraining, "client", flat)
    device = pick_device(core.device)
    student = Student(workload.model(), knobs.contrastive > 0)
    load(student, arrays_of(message.content), device).train()
    sent = arrays_of(message.content, TEACHER) if TEACHER in message.content else None
    teacher = load(deepcopy(student.model), sent, device) if sent else None
    data = own_data(workload, context, "train")
    loss = TargetLoss(workload, knobs, student, teacher, data, local.batch)
    weight = raised(server_round, core.rounds) if knobs.ramp else 1.0
    optimiser = sgd(student, schedule(local.learning_rate, server_round, core.rounds))
    mean = None
    if not loss.empty:
        mean = optimise(lambda: loss(weight), optimiser, local.steps, name="local training", after_step=loss.after_step)
    return RecordDict({ARRAYS: ArrayRecord(student.state_dict()), METRICS: metrics_record(known(loss=mean), len(data))})


ENTRY: Entry = Entry(
    "a teacher of the base labels the clients' images softly (Phoo 2021)", Knobs, Startup, ClientHalf(train, evaluate)
)
