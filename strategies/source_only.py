"""Source only: the server trains on its labelled data, clients only test. The bound that adaptation must beat.

It takes the very batches and steps that DualAdapt's server takes on source data, from the same random streams, so the
two differ by adaptation alone; DualAdapt carries this trainer as its own control.

**Metrics**: ``loss`` is the mean source loss of the round; clients report the workload's metrics on their own test
data for the averaged (EMA) model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedlab.config.schema import Config
from fedlab.data.dataset import Batch
from fedlab.errors import ConfigError
from fedlab.metrics import Phase
from fedlab.runs import pretrain_cache
from fedlab.runs.checkpoints import weights_sha256
from fedlab.seeds import seeded
from fedlab.strategies import validation
from fedlab.strategies.protocol import ClientContext, ClientFunctions, StrategySpec, drop_none, evaluate
from fedlab.training import Progress, cosine_factor, ema_update, resolve_device, train_steps
from fedlab.workload import Workload, missing_columns


class SourceTrainer:
    """Training on the server's own data, with labels where the loss takes them, and an averaged model beside the last.

    Attributes
    ----------
    model, average
        The model of the last step, and its exponential moving average.
    """

    def __init__(self, workload: Workload, config: Config, progress: Progress) -> None:
        core = config.run
        self.workload, self.seed, self.rounds, self.progress = workload, core.seed, core.rounds, progress
        self.options, self.device = config.server, resolve_device(core.device)
        self.source = workload.data(None, "train")
        if missing_columns(workload, self.source):
            raise ConfigError(
                f"strategy {core.strategy!r} trains on labelled source data, and the server's data of "
                f"workload {core.workload!r} has no labels"
            )
        with seeded(self.seed, "model"):
            self.model = workload.model().to(self.device)
        self.average = deepcopy(self.model).requires_grad_(False)
        self.optimiser = torch.optim.Adam(self.model.parameters(), self.options.learning_rate)

    def batch_at(self, server_round: int, step: int) -> Batch:
        """The labelled batch of one step: a function of the run seed, the round and the step, and of nothing else."""
        with seeded(self.seed, "source", server_round, step):
            return self.random_batch()

    def random_batch(self) -> Batch:
        """A labelled batch from torch's current random stream."""
        return {name: column.to(self.device) for name, column in self.source.sample_batch(self.options.batch_size).items()}

    def train(
        self, server_round: int, steps: int, name: str, extra_loss: Callable[[int], Tensor] | None = None
    ) -> float | None:
        """Source steps of one round; returns the mean loss.

        Parameters
        ----------
        beside
            A further loss, a function of the step, that an adapting strategy adds to the source loss.
        """
        self.model.train()
        rate = self.options.learning_rate * cosine_factor(self.options.final_lr_fraction, server_round, self.rounds)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        return train_steps(
            self.loss(server_round, steps, extra_loss),
            self.optimiser,
            steps,
            name=name,
            clip=self.options.max_grad_norm,
            progress=self.progress,
            after_step=self.update_ema,
        )

    def loss(
        self, server_round: int, steps: int, extra_loss: Callable[[int], Tensor] | None = None
    ) -> Callable[[], Tensor]:
        """The source loss of one round, a fresh batch at each call."""
        numbers = iter(range(steps))

        def loss() -> Tensor:
            step = next(numbers)
            batch = self.batch_at(server_round, step)
            with seeded(self.seed, "source model", server_round, step):
                value = self.workload.loss(self.model, batch)
            return value + extra_loss(step) if extra_loss else value

        return loss

    def pretrain(self) -> float | None:
        """Line 1 of DualAdapt: the source loss before the first round, one cycle of Adam; then the average starts."""
        steps, peak = self.options.pretrain_steps, self.options.pretrain_learning_rate
        if not steps:
            return None

        def make() -> dict[str, Any]:
            optimiser = torch.optim.Adam(self.model.parameters(), peak)
            rise = 0.1 if steps > 10 else 0.3  # torch divides by zero where rise * steps is 1
            plan = torch.optim.lr_scheduler.OneCycleLR(optimiser, peak, steps, pct_start=rise, final_div_factor=10)
            self.model.train()
            mean = train_steps(
                self.loss(0, steps), optimiser, steps, name="pretrain", progress=self.progress, after_step=plan.step
            )
            return {"model": self.model.state_dict(), "loss": mean}

        done = pretrain_cache.get_or_compute(self.fingerprint, make, self.device)
        self.model.load_state_dict(done["model"])
        self.average.load_state_dict(done["model"])
        mean: float = done["loss"]
        return mean

    def fingerprint(self) -> str:
        """A name for all that pre-training depends on, and for nothing that comes after it.

        Beside the options: the source data, the initial weights, and what the first step draws and loses. So strategies
        whose workloads differ on the clients alone share it, and one that trains other parts or views does not.
        """
        batch = self.batch_at(0, 0)
        with seeded(self.seed, "source model", 0, 0):
            loss = self.workload.loss(deepcopy(self.model).train(), batch)
        options = replace(
            self.options, steps=0, learning_rate=1.0, ema_decay=0.0, max_grad_norm=0.0, final_lr_fraction=1.0
        )  # of what comes after it
        machine = (torch.__version__, torch.get_num_threads(), str(self.device))
        first = (self.source.columns, batch, loss.detach(), self.model.state_dict())
        words = f"{options}|{self.seed}|{machine}|{weights_sha256(first)}"
        return hashlib.sha256(words.encode()).hexdigest()[:16]

    def update_ema(self) -> None:
        """Move the averaged model towards the last one."""
        ema_update(self.average, self.model, self.options.ema_decay)

    def state(self) -> dict[str, Any]:
        """Both models and the optimiser."""
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take a state back."""
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])


@dataclass(frozen=True)
class Options:
    """No options of its own: ``server.*`` says how the source is trained on."""


class SourceOnly(FlowerFedAvg):
    """Server half: source steps in place of aggregation; no client is asked to train."""

    def __init__(self, workload: Workload, config: Config, progress: Progress) -> None:
        super().__init__(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
        self.trainer = SourceTrainer(workload, config, progress)
        self.loss: float | None = None

    def initialize(self) -> ArrayRecord:
        """Pre-train on the source."""
        self.loss = self.trainer.pretrain()
        return ArrayRecord(self.trainer.average.state_dict())

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """No messages: clients do not train."""
        return []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The round's source steps."""
        self.loss = self.trainer.train(server_round, self.trainer.options.steps, "source")
        return ArrayRecord(self.trainer.average.state_dict()), None

    def check(self, reply: Message) -> None:
        """No reply is expected."""
        raise validation.InvalidUpdate("no client was asked to train")

    def metrics(self) -> dict[str, float]:
        """Mean source loss of the round."""
        return drop_none(loss=self.loss)

    def events(self) -> list[dict[str, Any]]:
        """Nothing to tell."""
        return []

    def state(self) -> dict[str, Any]:
        """The trainer's state."""
        return self.trainer.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take a state back."""
        self.trainer.restore(state)


def train(workload: Workload, message: Message, context: ClientContext) -> RecordDict:
    """Client half: never asked for."""
    raise ConfigError("source_only does not train on clients")


PHASES = (Phase("pretrain", "pre-training on the source", logged=True), Phase("source", "training on the source"))

PHASES = (Phase("pretrain", "pre-training on the source", logged=True), Phase("source", "training on the source"))

SPEC: StrategySpec = StrategySpec(
    Options,
    SourceOnly,
    ClientFunctions(train, evaluate),
    baseline=True,
    phases=PHASES,
)
