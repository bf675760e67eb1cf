"""Source only: the server trains on its labeled data, clients only test. The baseline that adaptation must beat.

It takes the same batches and steps as DualAdapt's server takes on source data, from the same random streams, so the
two differ by adaptation alone; DualAdapt carries a second trainer of this kind as its source-only baseline.

**Metrics**: ``loss`` is the mean source loss of the round; clients report the workload's metrics on their own test
data for the averaged (EMA) model.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedlab.config.lr_schedules import SCHEDULE_FIELDS
from fedlab.config.schema import Config
from fedlab.config.training_options import DEFAULT_SERVER
from fedlab.cuda_graphs import GraphedLoss
from fedlab.data.dataset import Batch
from fedlab.data.random_batches import RandomBatches
from fedlab.errors import ConfigError
from fedlab.metrics import Phase
from fedlab.optimizers import Adam, FusedAdam, one_cycle
from fedlab.precision import outside_autocast
from fedlab.runs import pretrain_cache
from fedlab.runs.checkpoints import weights_sha256
from fedlab.seeds import seeded
from fedlab.strategies import validation
from fedlab.strategies.base import BaseStrategy, broadcast
from fedlab.strategies.client_adaptation import OFF, ClientAdapt
from fedlab.strategies.protocol import (
    CLIENT_STEPS,
    CONFIG,
    EXAMPLES,
    METRICS,
    ClientContext,
    ClientFunctions,
    StrategySpec,
    client_dataset,
    client_metrics,
    drop_none,
    evaluate,
    is_final,
    metrics_record,
    tensor_record,
)
from fedlab.training import MovingAverage, Progress, resolve_device, to_training_device, train_steps
from fedlab.workload import Workload, missing_columns


def made(batches: RandomBatches, drawn: Batch) -> Batch:
    """Return the batch that was drawn; its pixels are computed in float32 whatever the precision of the loss."""
    with torch.no_grad(), outside_autocast():
        return batches.make(drawn)


class SourceTrainer:
    """Training on the server's own data, and a moving average of the weights.

    Attributes
    ----------
    model, average
        The model of the last step, and its exponential moving average.
    source
        The server's training examples.
    batches
        Random batches of them, on the device.
    objective
        The workload's loss of what a batch is made of.

    Raises
    ------
    ConfigError
        When the server's data lacks a column that the workload's loss reads.
    """

    def __init__(self, workload: Workload, config: Config, progress: Progress) -> None:
        core = config.run
        self.workload, self.seed, self.rounds, self.progress = workload, core.seed, core.rounds, progress
        self.options, self.device = config.server, resolve_device(core.device)
        self.source = workload.data(None, "train")
        if missing_columns(workload, self.source):
            raise ConfigError(
                f"strategy {core.strategy!r} trains on labeled source data, and the server's data of "
                f"workload {core.workload!r} has no labels"
            )
        self.batches = RandomBatches(self.source.on_device(self.device), self.options.batch_size, self.device)
        with seeded(self.seed, "model"):
            self.model = workload.model()
        self.average = to_training_device(deepcopy(self.model), self.device).requires_grad_(False)
        self.model = to_training_device(self.model, self.device, core.compile)
        self._moving = MovingAverage(self.average, self.model, self.options.ema_decay)
        self.objective = GraphedLoss(workload.loss, self.model, core.cuda_graphs, partial(made, self.batches))
        self.optimizer = self._adam(self.options.learning_rate, self.options.weight_decay)

    def _adam(self, learning_rate: float, weight_decay: float = 0.0) -> Adam | FusedAdam:
        kind = FusedAdam if self.device.type == "cuda" else Adam
        return kind(self.model.parameters(), learning_rate, weight_decay)

    def batch_at(self, server_round: int, number: int) -> Batch:
        """Return one batch, a function of the run seed, the round and its number in the round alone."""
        return made(self.batches, self.drawn_at(server_round, number))

    def drawn_at(self, server_round: int, number: int) -> Batch:
        """Return what that batch is made of, which is what :attr:`objective` takes."""
        return self.batches.draw_at(self.seed, "source", server_round, number)

    def random_batch(self) -> Batch:
        """Return a batch from torch's current random stream."""
        return self.batches.finished()

    def train(
        self,
        server_round: int,
        steps: int,
        name: str,
        extra_loss: Callable[[int], Tensor] | None = None,
        separate: bool = False,
    ) -> float | None:
        """Run the source steps of one round and return their mean loss, None without steps.

        A step takes ``server.accumulate_steps`` batches, of the source and of the term.

        Parameters
        ----------
        name
            Phase that progress reports and errors name.
        extra_loss
            A term that an adapting strategy adds to the source loss, as a function of the batch's number.
        separate
            Take a step on the term alone before each source step, instead of one step on the sum.

        Raises
        ------
        RunError
            When the loss is not finite.
        """
        self.model.train()
        self.optimizer.learning_rate = self.options.at_round(server_round, self.rounds).learning_rate
        every_step = self.options.ema_decay > 0  # else the average is a copy, of which none but the last is read
        mean = train_steps(
            self.loss(server_round, steps * self.options.accumulate_steps, extra_loss, separate),
            self.optimizer,
            steps,
            name=name,
            accumulate=self.options.accumulate_steps,
            max_grad_norm=self.options.max_grad_norm,
            progress=self.progress,
            after_step=self._moving.update if every_step else None,
        )
        if steps and not every_step:
            self._moving.update()
        return mean

    def loss(
        self,
        server_round: int,
        batches: int,
        extra_loss: Callable[[int], Tensor] | None = None,
        separate: bool = False,
    ) -> Callable[[], Tensor]:
        """Return the source loss of one round, which takes the next batch at each call; see :meth:`train`."""
        numbers = iter(range(batches))

        def loss() -> Tensor:
            number = next(numbers)
            if extra_loss and separate and number % self.options.accumulate_steps == 0:
                self._step_on(extra_loss, number)
            drawn = self.drawn_at(server_round, number)
            with seeded(self.seed, "source model", server_round, number):
                value = self.objective(drawn)
            return value + extra_loss(number) if extra_loss and not separate else value

        return loss

    def _step_on(self, extra_loss: Callable[[int], Tensor], number: int) -> None:
        """Perform one step on a term alone, from the batch of this number on."""
        options, numbers = self.options, count(number)
        train_steps(
            lambda: extra_loss(next(numbers)),
            self.optimizer,
            1,
            name="server",
            accumulate=options.accumulate_steps,
            max_grad_norm=options.max_grad_norm,
        )

    def pretrain(self) -> float | None:
        """Train on the source before the first round, one cycle of Adam, and return the mean loss; None without steps.

        The averaged model starts at the result, which runs of the same :meth:`fingerprint` share.
        """
        steps, peak = self.options.pretrain_steps, self.options.pretrain_learning_rate
        if not steps:
            return None

        def make() -> dict[str, Any]:
            optimizer = self._adam(peak)
            plan = one_cycle(peak, steps, rise=0.1 if steps > 10 else 0.3, final_div_factor=10)

            def next_rate() -> None:
                optimizer.learning_rate, optimizer.beta_1 = next(plan, (0.0, 0.0))

            next_rate()
            self.model.train()
            mean = train_steps(
                self.loss(0, steps), optimizer, steps, name="pretrain", progress=self.progress, after_step=next_rate
            )
            return {"model": self.model.state_dict(), "loss": mean}

        done = pretrain_cache.get_or_compute(self.fingerprint, make, self.device)
        self.model.load_state_dict(done["model"])
        self.average.load_state_dict(done["model"])
        mean: float = done["loss"]
        return mean

    def fingerprint(self) -> str:
        """Return a hash of everything that pre-training depends on, and of nothing that comes after it.

        It covers the options of pre-training, the source data, the initial weights, and the batch and loss of the first
        step: strategies whose workloads differ on the clients alone share it, and one that trains other parts or views
        does not.
        """
        batch = self.batch_at(0, 0)
        with seeded(self.seed, "source model", 0, 0):
            loss = self.workload.loss(deepcopy(self.model).train(), batch)
        # options that act after pre-training are set to their defaults
        steps = ("steps", "accumulate_steps", "learning_rate", "weight_decay", "ema_decay", "max_grad_norm")
        after = (*steps, *SCHEDULE_FIELDS)
        options = replace(self.options, **{name: getattr(DEFAULT_SERVER, name) for name in after})
        machine = (torch.__version__, torch.get_num_threads(), str(self.device))
        first = (self.source.columns, batch, loss.detach(), self.model.state_dict())
        words = f"{options}|{self.seed}|{machine}|{weights_sha256(first)}"
        return hashlib.sha256(words.encode()).hexdigest()[:16]

    def state(self) -> dict[str, Any]:
        """Return the states of both models and of the optimizer."""
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimizer.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore both models and the optimizer."""
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimiser"])


@dataclass(frozen=True)
class Options:
    """Adaptation of clients after the last round; ``server.*`` says how the source is trained on."""

    client_adapt: ClientAdapt = OFF


class SourceOnly(BaseStrategy):
    """Server side: source steps; no client is asked to train, unless clients adapt after the last round."""

    def __init__(self, workload: Workload, config: Config, progress: Progress) -> None:
        self.trainer = SourceTrainer(workload, config, progress)
        self.adapts, self.rounds = config.adaptation is not None, config.run.rounds
        self.loss: float | None = None

    def initialize(self) -> ArrayRecord:
        """Pre-train on the source and return the averaged model."""
        self.loss = self.trainer.pretrain()
        return tensor_record(self.trainer.average.state_dict())

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Run the round's source steps; return no messages, or those to clients that adapt in the last round."""
        self.loss = self.trainer.train(server_round, self.trainer.options.steps, "source")
        if not (self.adapts and is_final(server_round, self.rounds, config)):
            return []
        return broadcast(
            grid, MessageType.TRAIN, server_round, tensor_record(self.trainer.average.state_dict()), config
        )

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the averaged model; replies say that a client has adapted, and nothing else."""
        deque(replies, maxlen=0)
        return tensor_record(self.trainer.average.state_dict()), None

    def check(self, reply: Message) -> None:
        """Refuse a reply of a client that was not asked, or with more than the number of its examples.

        Raises
        ------
        InvalidUpdate
            With what came.
        """
        if not self.adapts:
            raise validation.InvalidUpdate("no client was asked to train")
        metrics = client_metrics(reply)
        if set(reply.content) != {METRICS, CONFIG} or metrics.keys() != {EXAMPLES}:
            raise validation.InvalidUpdate(
                f"its records and metrics are {sorted(reply.content), sorted(metrics)}; expected no arrays, and "
                f"{EXAMPLES} alone"
            )

    def metrics(self) -> dict[str, float]:
        """Return the mean source loss of the round."""
        return drop_none(loss=self.loss)

    def state(self) -> dict[str, Any]:
        """Return the trainer's state."""
        return self.trainer.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the trainer."""
        self.trainer.restore(state)


def train(workload: Workload, message: Message, context: ClientContext) -> RecordDict:
    """Return the number of examples alone: with a method of adaptation, that comes afterwards.

    Raises
    ------
    ConfigError
        Without one: the server never asks for it.
    """
    if context.config.adaptation is None:
        raise ConfigError("source_only does not train on clients")
    return RecordDict({METRICS: metrics_record({}, len(client_dataset(workload, context, "train")))})


PHASES = (Phase("pretrain", "pre-training on the source", logged=True), Phase("source", "training on the source"))

SPEC: StrategySpec = StrategySpec(
    Options,
    SourceOnly,
    ClientFunctions(train, evaluate),
    baseline=True,
    upload="nothing",
    phases=PHASES,
    ignores=CLIENT_STEPS,
)
