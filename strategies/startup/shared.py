"""What both halves of STARTUP share: its options, the student, and line 7, the loss on images without labels."""

from __future__ import annotations

import math
from dataclasses import dataclass as plain_dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from fedlab.config.sections import NonNegativeFloat, PositiveFloat
from fedlab.data.dataset import ArrayDataset, Batch
from fedlab.losses.ntxent import nt_xent
from fedlab.losses.soft_labels import DIVERGENCES, shuffle_targets, soft_targets
from fedlab.models.feature_classifier import features_of, head_of
from fedlab.strategies.aggregation import Aggregation
from fedlab.training import ema_update
from fedlab.workload import Workload

TEACHER = "teacher"
EMBEDDING = 128  # width of what NT-Xent compares
MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4
BATCH = 500  # images at a time where nothing is learned


@dataclass(frozen=True)
class Options:
    """The ingredients of the student's loss, and how they are federated."""

    setting: Literal["federated", "centralized"] = Field(
        "federated", description="where the student learns; centralized: on the server, which sees all images"
    )
    start: Literal["backbone", "whole", "fresh"] = Field(
        "backbone", description="what the student takes from the teacher: features, head too, or nothing"
    )
    base_weight: NonNegativeFloat = Field(1.0, description="weight of the cross-entropy on the base")
    distillation_loss: Literal["kl", "hard", "reverse_kl", "reverse_cross_entropy", "entropy", "none"] = Field(
        "kl", description="loss against the teacher's soft labels; the last four are for ablations"
    )
    shuffle: bool = Field(False, description="give each image another one's soft label: an ablation")
    distillation_weight: NonNegativeFloat = Field(1.0, description="weight of the loss against soft labels")
    contrastive_weight: NonNegativeFloat = Field(1.0, description="weight of NT-Xent")
    temperature: PositiveFloat = Field(1.0, description="temperature of NT-Xent")
    teacher_ema: float = Field(0.0, ge=0, lt=1, description="decay a step of a teacher that follows the student; 0: fixed")
    inverse_temperature: PositiveFloat = Field(1.0, description="inverse temperature of the soft labels")
    distillation_warmup: bool = Field(False, description="raise the weight of soft labels from 0 over the first rounds by a cosine")
    evaluate_every: int = Field(0, ge=0, description="rounds between tests; 0: before the first and after the last")
    aggregation: Aggregation = "fedavg"


@runtime_checkable
class SupportsViews(Protocol):
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

    def forward(self, x: Tensor) -> Tensor:
        """What the model makes of inputs; the projector is for NT-Xent alone."""
        found: Tensor = self.model(x)
        return found


@plain_dataclass(frozen=True)
class StudentWorkload:
    """A workload as an aggregation rule sees it: what clients upload is the student, projector and all."""

    workload: Workload
    contrastive: bool

    @property
    def clients(self) -> tuple[str, ...]:
        """As in the workload."""
        return self.workload.clients

    def model(self) -> Student:
        """A fresh student."""
        return Student(self.workload.model(), self.contrastive)

    def data(self, partition: int | None, split: str) -> ArrayDataset:
        """As in the workload."""
        return self.workload.data(partition, split)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The workload's of the student's model."""
        assert isinstance(model, Student)
        return self.workload.loss(model.model, batch)

    def evaluate(self, model: nn.Module, data: ArrayDataset) -> dict[str, float]:
        """The workload's of the student's model."""
        assert isinstance(model, Student)
        return self.workload.evaluate(model.model, data)


class TargetLoss:
    """Line 7 on one owner's images, and lines 5 and 6 before it."""

    def __init__(
        self, workload: Workload, options: Options, student: Student, teacher: nn.Module | None, data: ArrayDataset, batch: int
    ) -> None:
        assert isinstance(workload, SupportsViews)
        self.view, self.options, self.student, self.data, self.batch = workload.view, options, student, data, batch
        self.device = next(student.parameters()).device
        self.teacher = teacher.requires_grad_(False).eval() if teacher and options.distillation_loss != "none" else None
        fixed = self.teacher is not None and not options.teacher_ema
        self.soft = torch.cat([self._label(x["x"]) for x in data.batches(BATCH)]) if fixed else None

    @torch.no_grad()
    def _label(self, x: Tensor) -> Tensor:
        assert self.teacher is not None
        return soft_targets(self.teacher(x.to(self.device)), self.options.inverse_temperature)

    def __call__(self, weight: float = 1.0) -> Tensor:
        """The loss of a fresh batch, a scalar; ``weight`` scales the part of the soft labels."""
        rows = torch.randint(len(self.data), (self.batch,))
        x = self.data[rows]["x"]
        z = features_of(self.student.model)(torch.cat([self.view(x), self.view(x)]).to(self.device))  # (2 batch, width)
        loss: Tensor = z.new_zeros(())
        if self.teacher is not None:
            soft = self.soft[rows.to(self.device)] if self.soft is not None else self._label(self.view(x, weak=True))
            soft = shuffle_targets(soft) if self.options.shuffle else soft
            logits = head_of(self.student.model)(z)  # (2 batch, classes)
            loss = loss + weight * self.options.distillation_weight * DIVERGENCES[self.options.distillation_loss](logits, soft.repeat(2, 1))
        if self.options.contrastive_weight:
            first, second = self.student.projector(z).chunk(2)
            loss = loss + self.options.contrastive_weight * nt_xent(first, second, self.options.temperature)
        return loss

    def after_step(self) -> None:
        """A moving teacher takes its step behind the student."""
        if self.teacher is not None and self.options.teacher_ema:
            ema_update(self.teacher, self.student.model, self.options.teacher_ema)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to learn from."""
        return self.teacher is None and not self.options.contrastive_weight


def schedule(rate: float, server_round: int, rounds: int) -> float:
    """Step size of a round: a cosine from ``rate`` towards 0."""
    return rate * (1 + math.cos(math.pi * (server_round - 1) / rounds)) / 2


def ramp_up(server_round: int, rounds: int) -> float:
    """Dynamic Distillation's weight of soft labels in a round: min(1, 3/4 (1 - cos(pi t))) with t the share done."""
    return min(1.0, 0.75 * (1 - math.cos(math.pi * (server_round - 0.5) / rounds)))


def sgd(module: nn.Module, rate: float) -> torch.optim.SGD:
    """The published optimiser, fresh."""
    return torch.optim.SGD(module.parameters(), rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
