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
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedlab.config.schema import Core, Flat, ServerTraining, build
from fedlab.data.dataset import Batch
from fedlab.errors import ConfigError
from fedlab.metrics import Phase
from fedlab.runs import pretrain_cache
from fedlab.runs.directory import weights_sha256
from fedlab.seeds import seeded
from fedlab.strategies import validation
from fedlab.strategies.protocol import ClientHalf, Entry, evaluate, known
from fedlab.training import Progress, annealed, follow, optimise, pick_device
from fedlab.workload import Workload, lacking


class SourceTrainer:
    """Training on the server's own data, with labels where the loss takes them, and an averaged model beside the last.

    Attributes
    ----------
    model, average
        The model of the last step, and its exponential moving average.
    """

    def __init__(self, workload: Workload, flat: Flat, progress: Progress) -> None:
        core = build(Core, "", flat)
        self.workload, self.seed, self.rounds, self.progress = workload, core.seed, core.rounds, progress
        self.knobs, self.device = build(ServerTraining, "server", flat), pick_device(core.device)
        self.source = workload.data(None, "train")
        if lacking(workload, self.source):
            raise ConfigError(
                f"strategy {core.strategy!r} trains on labelled source data, and the server's data of "
                f"workload {core.workload!r} has no labels"
            )
        with seeded(self.seed, "model"):
            self.model = workload.model().to(self.device)
        self.average = deepcopy(self.model).requires_grad_(False)
        self.optimiser = torch.optim.Adam(self.model.parameters(), self.knobs.learning_rate)

    def batch(self, server_round: int, step: int) -> Batch:
        """The labelled batch of one step: a function of the run seed, the round and the step, and of nothing else."""
        with seeded(self.seed, "source", server_round, step):
            return self.draw()

    def draw(self) -> Batch:
        """A labelled batch from torch's current random stream."""
        return {name: column.to(self.device) for name, column in self.source.sample(self.knobs.batch).items()}

    def train(
        self, server_round: int, steps: int, name: str, beside: Callable[[int], Tensor] | None = None
    ) -> float | None:
        """Source steps of one round; returns the mean loss.

        Parameters
        ----------
        beside
            A further loss, a function of the step, that an adapting strategy adds to the source loss.
        """
        self.model.train()
        rate = self.knobs.learning_rate * annealed(self.knobs.anneal, server_round, self.rounds)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        return optimise(
            self.loss(server_round, steps, beside),
            self.optimiser,
            steps,
            name=name,
            clip=self.knobs.clip,
            progress=self.progress,
            after_step=self.follow,
        )

    def loss(
        self, server_round: int, steps: int, beside: Callable[[int], Tensor] | None = None
    ) -> Callable[[], Tensor]:
        """The source loss of one round, a fresh batch at each call."""
        numbers = iter(range(steps))

        def loss() -> Tensor:
            step = next(numbers)
            batch = self.batch(server_round, step)
            with seeded(self.seed, "source model", server_round, step):
                value = self.workload.loss(self.model, batch)
            return value + beside(step) if beside else value

        return loss

    def pretrain(self) -> float | None:
        """Line 1 of DualAdapt: the source loss before the first round, one cycle of Adam; then the average starts."""
        steps, peak = self.knobs.pretrain_steps, self.knobs.pretrain_learning_rate
        if not steps:
            return None

        def make() -> dict[str, Any]:
            optimiser = torch.optim.Adam(self.model.parameters(), peak)
            rise = 0.1 if steps > 10 else 0.3  # torch divides by zero where rise * steps is 1
            plan = torch.optim.lr_scheduler.OneCycleLR(optimiser, peak, steps, pct_start=rise, final_div_factor=10)
            self.model.train()
            mean = optimise(
                self.loss(0, steps), optimiser, steps, name="pretrain", progress=self.progress, after_step=plan.step
            )
            return {"model": self.model.state_dict(), "loss": mean}

        done = pretrain_cache.once(self.fingerprint, make, self.device)
        self.model.load_state_dict(done["model"])
        self.average.load_state_dict(done["model"])
        mean: float = done["loss"]
        return mean

    def fingerprint(self) -> str:
        """A name for all that pre-training depends on, and for nothing that comes after it.

        Beside the knobs: the source data, the initial weights, and what the first step draws and loses. So strategies
        whose workloads differ on the clients alone share it, and one that trains other parts or views does not.
        """
        batch = self.batch(0, 0)
        with seeded(self.seed, "source model", 0, 0):
            loss = self.workload.loss(deepcopy(self.model).train(), batch)
        knobs = replace(
            self.knobs, steps=0, learning_rate=1.0, average=0.0, clip=0.0, anneal=1.0
        )  # of what comes after it
        machine = (torch.__version__, torch.get_num_threads(), str(self.device))
        first = (self.source.columns, batch, loss.detach(), self.model.state_dict())
        words = f"{knobs}|{self.seed}|{machine}|{weights_sha256(first)}"
        return hashlib.sha256(words.encode()).hexdigest()[:16]

    def follow(self) -> None:
        """Move the averaged model towards the last one."""
        follow(self.average, self.model, self.knobs.average)

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
class Knobs:
    """No knobs of its own: ``server.*`` says how the source is trained on."""


class SourceOnly(FlowerFedAvg):
    """Server half: source steps in place of aggregation; no client is asked to train."""

    def __init__(self, workload: Workload, flat: Flat, progress: Progress) -> None:
        super().__init__(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
        self.trainer = SourceTrainer(workload, flat, progress)
        self.loss: float | None = None

    def initialise(self) -> ArrayRecord:
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
        self.loss = self.trainer.train(server_round, self.trainer.knobs.steps, "source")
        return ArrayRecord(self.trainer.average.state_dict()), None

    def check(self, reply: Message) -> None:
        """No reply is expected."""
        raise validation.Refused("no client was asked to train")

    def metrics(self) -> dict[str, float]:
        """Mean source loss of the round."""
        return known(loss=self.loss)

    def notes(self) -> list[dict[str, Any]]:
        """Nothing to tell."""
        return []

    def state(self) -> dict[str, Any]:
        """The trainer's state."""
        return self.trainer.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take a state back."""
        self.trainer.restore(state)


def train(workload: Workload, message: Message, context: Context) -> RecordDict:
    """Client half: never asked for."""
    raise ConfigError("source_only does not train on clients")


PHASES = (Phase("pretrain", "pre-training on the source", logged=True), Phase("source", "training on the source"))

ENTRY: Entry = Entry(
    "the server trains on its source, no adaptation: the lower bound",
    Knobs,
    SourceOnly,
    ClientHalf(train, evaluate),
    baseline=True,
    phases=PHASES,
)
