"""Shared by STARTUP's server and client: options, the student, and line 7, the loss on images without labels."""

from __future__ import annotations

import math
from dataclasses import dataclass as plain_dataclass
from typing import Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from fedlab.config.sections import NonNegativeFloat, PositiveFloat
from fedlab.data.dataset import ArrayDataset, Batch
from fedlab.losses.ntxent import nt_xent
from fedlab.losses.soft_labels import DIVERGENCES, shuffle_targets, soft_targets
from fedlab.models.feature_classifier import features_of, head_of
from fedlab.optimizers import SGD
from fedlab.strategies.aggregation import Aggregation
from fedlab.strategies.wrapped_workload import WrappedWorkload
from fedlab.training import MovingAverage
from fedlab.workload import SupportsViews, Workload

TEACHER = "teacher"
EMBEDDING = 128  # width of the vectors that NT-Xent compares
MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4
BATCH = 500  # images per forward pass without gradients


@dataclass(frozen=True)
class Options:
    """The ingredients of the student's loss, and how they are federated."""

    setting: Literal["federated", "centralized"] = Field(
        "federated", description="where the student learns; centralized: on the server, which reads all images"
    )
    start: Literal["backbone", "whole", "fresh"] = Field(
        "backbone", description="what the student takes from the teacher: features, head too, or nothing"
    )
    base_weight: NonNegativeFloat = Field(1.0, description="weight of the cross-entropy on the base")
    distillation_loss: Literal["kl", "hard", "reverse_kl", "reverse_cross_entropy", "entropy", "none"] = Field(
        "kl", description="loss against the teacher's soft labels; the last four are for ablations"
    )
    shuffle: bool = Field(False, description="give each image the soft label of another one: an ablation")
    distillation_weight: NonNegativeFloat = Field(1.0, description="weight of the loss against soft labels")
    contrastive_weight: NonNegativeFloat = Field(1.0, description="weight of NT-Xent")
    temperature: PositiveFloat = Field(1.0, description="temperature of NT-Xent")
    teacher_ema: float = Field(
        0.0, ge=0, lt=1, description="decay a step of a teacher that follows the student; 0: fixed"
    )
    inverse_temperature: PositiveFloat = Field(1.0, description="inverse temperature of the soft labels")
    distillation_warmup: bool = Field(
        False, description="raise the weight of soft labels from 0 over the first rounds by a cosine"
    )
    evaluate_every: int = Field(0, ge=0, description="rounds between tests; 0: before the first and after the last")
    aggregation: Aggregation = "fedavg"


class Student(nn.Module):
    """A model and, if NT-Xent is used, the projector between its features and that loss."""

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
        """Map inputs (batch, ...) to logits (batch, classes); the projector takes no part."""
        logits: Tensor = self.model(x)
        return logits


@plain_dataclass(frozen=True)
class StudentWorkload(WrappedWorkload):
    """A workload whose model is the student, which clients upload with its projector."""

    contrastive: bool

    def model(self) -> Student:
        """Return a fresh student."""
        return Student(self.inner.model(), self.contrastive)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the workload's loss of the student's model."""
        assert isinstance(model, Student)
        return self.inner.loss(model.model, batch)

    def evaluate(self, model: nn.Module, data: ArrayDataset) -> dict[str, float]:
        """Return the workload's metrics of the student's model."""
        assert isinstance(model, Student)
        return self.inner.evaluate(model.model, data)


class TargetLoss:
    """Lines 5 to 7: soft labels of a set of images, random views of a batch, and the loss.

    Parameters
    ----------
    data
        Images ``x``, without labels.
    batch
        Number of images per step.
    """

    def __init__(
        self,
        workload: Workload,
        options: Options,
        student: Student,
        teacher: nn.Module | None,
        data: ArrayDataset,
        batch: int,
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
        """Return the loss of a random batch, a scalar; ``weight`` multiplies the term of the soft labels."""
        rows = torch.randint(len(self.data), (self.batch,))
        x = self.data[rows]["x"]
        z = features_of(self.student.model)(torch.cat([self.view(x), self.view(x)]).to(self.device))  # (2 batch, width)
        loss: Tensor = z.new_zeros(())
        if self.teacher is not None:
            soft = self.soft[rows.to(self.device)] if self.soft is not None else self._label(self.view(x, weak=True))
            soft = shuffle_targets(soft) if self.options.shuffle else soft
            logits = head_of(self.student.model)(z)  # (2 batch, classes)
            loss = loss + weight * self.options.distillation_weight * DIVERGENCES[self.options.distillation_loss](
                logits, soft.repeat(2, 1)
            )
        if self.options.contrastive_weight:
            first, second = self.student.projector(z).chunk(2)
            loss = loss + self.options.contrastive_weight * nt_xent(first, second, self.options.temperature)
        return loss

    def after_step(self) -> None:
        """Move the teacher towards the student, if it moves."""
        if self.teacher is not None and self.options.teacher_ema:
            MovingAverage(self.teacher, self.student.model, self.options.teacher_ema).update()

    @property
    def empty(self) -> bool:
        """True if the loss has no term."""
        return self.teacher is None and not self.options.contrastive_weight


def schedule(rate: float, server_round: int, rounds: int) -> float:
    """Return the step size of a round: a cosine from ``rate`` towards 0."""
    return rate * (1 + math.cos(math.pi * (server_round - 1) / rounds)) / 2


def ramp_up(server_round: int, rounds: int) -> float:
    """Return Dynamic Distillation's weight of soft labels: min(1, 3/4 (1 - cos(pi t))), t the fraction of rounds."""
    return min(1.0, 0.75 * (1 - math.cos(math.pi * (server_round - 0.5) / rounds)))


def sgd(module: nn.Module, rate: float) -> SGD:
    """Return a fresh optimizer as published: SGD with momentum and weight decay."""
    return SGD(module.parameters(), rate, MOMENTUM, WEIGHT_DECAY)
