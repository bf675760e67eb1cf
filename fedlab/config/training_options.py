"""The sections ``server`` and ``client``: how each of them trains."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedlab.config.lr_schedules import ScheduledConfig
from fedlab.config.sections import NonNegativeFloat, PositiveFloat, parse_section


@dataclass(frozen=True)
class ServerConfig(ScheduledConfig):
    """Training of the server on its labeled data: the same options and the same batches for every strategy."""

    pretrain_steps: int = Field(800, ge=0, description="steps on labeled source data before round 1")
    pretrain_learning_rate: PositiveFloat = Field(
        2e-3, description="largest learning rate of the one-cycle pre-training"
    )
    steps: int = Field(48, ge=0, description="source steps a round (R_s)")
    batch_size: int = Field(128, ge=2, description="source examples a step")
    accumulate_steps: int = Field(
        1, ge=1, description="batches of batch_size examples whose gradients are averaged in one step of a round"
    )
    learning_rate: PositiveFloat = Field(1e-3, description="Adam's learning rate on the server")
    weight_decay: NonNegativeFloat = Field(
        0.0, description="weight decay of Adam in the steps of a round, added to gradients"
    )
    ema_decay: float = Field(0.98, ge=0.0, lt=1.0, description="decay a step of the averaged (EMA) model; 0: none")
    max_grad_norm: NonNegativeFloat = Field(
        0.0, description="maximum norm of a gradient in the steps of a round; 0: no clipping"
    )
    evaluate: bool = Field(False, description="test the global model on the server's own test data")
    agreement: Literal["auto", "limit", "off"] = Field(
        "auto",
        description="limit: what a client of four or more adds to a round is limited by what the others add; off: not; "
        "auto: limit for real clients, off for simulated ones",
    )
    max_replies_mb: float = Field(
        2048.0, gt=0, description="megabytes of models for rules that need all replies of a round at once"
    )


DEFAULT_SERVER: ServerConfig = parse_section(ServerConfig, "server", {})


@dataclass(frozen=True)
class ClientConfig(ScheduledConfig):
    """Training of a client on its own data between two messages."""

    steps: int = Field(200, ge=0, description="local steps a round (R_c), where client.epochs is 0")
    epochs: float = Field(
        0.0, ge=0.0, allow_inf_nan=False, description="local passes a round over a client's examples; 0: client.steps"
    )
    batch_size: int = Field(256, ge=2, description="examples a step")
    accumulate_steps: int = Field(
        1, ge=1, description="batches of batch_size examples whose gradients are averaged in one step"
    )
    learning_rate: PositiveFloat = Field(5e-3, description="first learning rate on the client")
    momentum: float = Field(
        0.9,
        ge=0.0,
        lt=1.0,
        description="momentum of SGD of whole models on the client (rho); scaffold takes larger steps in its place",
    )
    weight_decay: NonNegativeFloat = Field(
        0.0, description="weight decay of whole models on the client, added to gradients"
    )
    optimizer: Literal["sgd", "adam"] = Field(
        "sgd", description="of whole models on the client, fresh each round: SGD with momentum, or Adam"
    )
    max_grad_norm: NonNegativeFloat = Field(
        0.0, description="maximum norm of a gradient of whole models on the client; 0: no clipping"
    )
    ema_decay: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description="decay a step of the averaged (EMA) whole model that a client sends; 0: the last",
    )
    evaluate: bool = Field(True, description="test the model on each client's test data")

    @property
    def trains(self) -> bool:
        """True if a client takes any local step."""
        return bool(self.steps or self.epochs)

    def local_steps(self, examples: int) -> int:
        """Return the number of local steps a round of a client with so many examples."""
        batch = self.batch_size * self.accumulate_steps
        return math.ceil(self.epochs * examples / batch) if self.epochs else self.steps
