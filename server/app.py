"""The ServerApp: knobs to workload and strategy, the visible loop of rounds, the run directory.

Flower's ``Strategy.start`` asks a strategy four questions a round. This loop asks the first three and adds what
``start`` cannot do: begin at the round after a checkpoint, time each phase, count bytes by client, stop with a
sentence when too few clients answer. The fourth, what test metrics mean together, has one answer for every strategy,
or tables could not be compared: the plain mean over the clients that reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.serverapp import Grid, ServerApp

from fedlab import strategies, workloads
from fedlab.comm.grid import RosterGrid, Traffic
from fedlab.comm.roster import Roster
from fedlab.config.schema import Core, ServerTraining, build, parse_arrivals
from fedlab.runs import pretrain_cache
from fedlab.runs.directory import RunDirectory, now, weights_sha256
from fedlab.runs.metrics import MetricTable
from fedlab.runs.tensorboard import TensorBoard
from fedlab.seeds import deterministic, seeded
from fedlab.server.budget import Budget
from fedlab.strategies import validation
from fedlab.strategies.protocol import EXAMPLES, FINAL, ServerHalf, client_metrics, load
from fedlab.training import pick_device
from fedlab.workload import Scored

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one federation, from its start or from its newest checkpoint, to its last round."""
    core = build(Core, "", context.run_config)
    run = RunDirectory.open(core.run_dir) if core.run_dir else RunDirectory.create(Path("runs"), context.run_config)
    with run:
        begun = "resumed" if "started" in run.manifest() else "started"
        run.note(**{begun: now()}, status="running", error=None, device=str(pick_device(core.device)))
        try:
            with deterministic(core.threads):
                _Federation(grid, context, core, run).run_rounds()
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt)
            run.note(
                status="interrupted" if stopped else "failed",
                ended=now(),
                error=None if stopped else str(error),
            )
            run.emit("failed", error=type(error).__name__, reason=str(error))
            raise


class _Federation:
    """The loop of rounds and what it writes down."""

    def __init__(self, grid: Grid, context: Context, core: Core, run: RunDirectory) -> None:
        self.core, self.run = core, run
        self.pretrains = build(ServerTraining, "server", context.run_config).pretrain_steps > 0
        self.workload = workloads.make(context.run_config)
        clients = core.clients or len(self.workload.clients)
        self.names = dict(enumerate(self.workload.clients[:clients]))
        self.strategy: ServerHalf = strategies.make(context.run_config, self.workload, self._progress)
        self.grid = RosterGrid(
            Roster(grid, self.names, run.owners(), self.run.emit),
            min_clients=core.min_clients or clients,
            arrivals=parse_arrivals(core.arrivals, self.names),
            deadline=core.deadline,
            reply_limit=core.reply_limit,
            wire_format=core.wire,
            on_reply=self._on_reply,
        )
        declared = MetricTable.declared(strategies.find(core.strategy), workloads.find(core.workload))
        self.run.note(**declared.to_manifest())
        self.budget = Budget(core.budget_bytes, core.budget_seconds, declared.evaluation_phases)
        self.seconds: dict[str, float] = {}
        self.round = 0
        self._told = 0.0

    def run_rounds(self) -> None:
        """From the newest checkpoint, or from nothing, to the last round."""
        checkpoint = self.run.go_back()
        self.run.emit("connecting", clients=len(self.names))
        with seeded(self.core.seed, "roster"):
            self.grid.gather(checkpoint[0] + 1 if checkpoint else 0, self.core.connect_timeout)
        board = TensorBoard(self.run.path / "tensorboard", after=checkpoint[0] if checkpoint else -1)
        if checkpoint:
            self.round, state = checkpoint
            arrays = ArrayRecord(state["arrays"])
            self.strategy.restore(state["strategy"])
            self.grid.refused = dict(state.get("refused", {}))
            self.budget.take_up(self.run.rounds())
            self.run.emit("resumed", round=self.round)
        else:
            arrays = self._initialise()
            board.add(self._conclude(arrays, *self._evaluate(arrays)))
        while self.round < self.core.rounds and not self.budget.ended_by:
            self.round += 1
            with seeded(self.core.seed, "roster"):
                self.grid.begin(self.round, self.core.connect_timeout)
            arrays, traffic = self._train(arrays)
            board.add(self._conclude(arrays, *self._evaluate(arrays), train=traffic))
        board.close()
        if self.budget.ended_by:
            self.run.emit("note", round=self.round, note=self.budget.sentence(self.round))
        digest = weights_sha256({"arrays": arrays.to_torch_state_dict(), "strategy": self.strategy.state()})
        self.run.note(
            status="finished",
            ended=now(),
            ended_by=self.budget.ended_by or "rounds",
            weights_sha256=digest,
        )
        self.run.emit("finished", weights_sha256=digest)

    def _initialise(self) -> ArrayRecord:
        store, start = pretrain_cache.shared(self.core.pretrained), seeded(self.core.seed, "initialise")
        phase = "pretrain" if self.pretrains else "start"
        with self._phase(phase), store as kept, start:
            arrays = self.strategy.initialise()
        self.seconds[phase] += kept.credit
        self.budget.charge(0, self.seconds)
        return arrays

    def _train(self, arrays: ArrayRecord) -> tuple[ArrayRecord, Traffic]:
        with self._phase("server"), seeded(self.core.seed, "configure", self.round):
            messages = list(self.strategy.configure_train(self.round, arrays, self._config(), self.grid))
        replies, traffic = self._exchange("clients", messages, self._check)
        with self._phase("server"), seeded(self.core.seed, "aggregate", self.round):
            aggregated, _ = self.strategy.aggregate_train(self.round, replies)
        self.budget.charge(sum(traffic.down.values()) + sum(traffic.up.values()), self.seconds)
        return aggregated if aggregated is not None else arrays, traffic

    def _evaluate(self, arrays: ArrayRecord) -> tuple[dict[str, Any], dict[str, float], Traffic]:
        with seeded(self.core.seed, "evaluate", self.round):
            config = ConfigRecord({FINAL: True}) if self.budget.ended_by else self._config()
            messages = list(self.strategy.configure_evaluate(self.round, arrays, config, self.grid))
        replies, traffic = self._exchange("evaluate", messages, validation.common)
        clients = {
            self.names[self.grid.partition_of[reply.metadata.src_node_id]]: client_metrics(reply) for reply in replies
        }
        return clients, mean_over(clients), traffic

    def _check(self, message: Message, reply: Message) -> None:
        validation.common(message, reply)
        self.strategy.check(reply)

    def _exchange(
        self, phase: str, messages: list[Message], check: Callable[[Message, Message], None]
    ) -> tuple[list[Message], Traffic]:
        try:
            with self._phase(phase, clients=len(messages)):
                replies = self.grid.exchange(messages, patience=self.core.reply_timeout, check=check)
        finally:
            self._tell_failures(phase)
        return replies, self.grid.traffic

    def _tell_failures(self, phase: str) -> None:
        for failure in self.grid.traffic.failures:
            self.run.emit(
                "client_failed",
                round=self.round,
                phase=phase,
                partition=failure.partition,
                client=self.names[failure.partition],
                kind=failure.kind,
                reason=failure.reason,
            )

    def _conclude(
        self,
        arrays: ArrayRecord,
        clients: dict[str, Any],
        mean: dict[str, float],
        evaluate: Traffic,
        train: Traffic | None = None,
    ) -> dict[str, Any]:
        """Write the round down: its line of metrics first, then its checkpoint, from which resuming starts."""
        train, notes, score = train or Traffic(), self.strategy.notes(), self._score(arrays)
        for note in notes:
            self.run.emit("note", round=self.round, **note)
        record = {
            "round": self.round,
            "clients": clients,
            "mean": mean,
            "server": dict(self.strategy.metrics()),
            "score": dict(score),
            "bytes": {
                name: {
                    "train_down": train.down.get(partition, 0),
                    "train_up": train.up.get(partition, 0),
                    "evaluate_down": evaluate.down.get(partition, 0),
                    "evaluate_up": evaluate.up.get(partition, 0),
                }
                for partition, name in self.names.items()
            },
            "failures": [
                {
                    "client": self.names[failure.partition],
                    "partition": failure.partition,
                    "phase": phase,
                    "kind": failure.kind,
                    "reason": failure.reason.strip().splitlines()[-1],
                }
                for phase, traffic in (("clients", train), ("evaluate", evaluate))
                for failure in traffic.failures
            ],
            "absent": [self.names[partition] for partition in self.grid.absent()],
            "notes": notes,
            "seconds": {phase: round(value, 4) for phase, value in self.seconds.items()},
        }
        self.run.log_round(record)
        self.run.checkpoint(
            self.round,
            {
                "arrays": arrays.to_torch_state_dict(),
                "strategy": self.strategy.state(),
                "refused": self.grid.refused,
            },
            self.core.keep_checkpoints,
            self.core.keep_start,
        )
        told = {"mean": mean, "clients": clients, "score": dict(score)}
        self.run.emit("round", round=self.round, rounds=self.core.rounds, **told)
        self.seconds = {}
        return record

    def _score(self, arrays: ArrayRecord) -> Mapping[str, float]:
        """What the workload says of the global model alone; nothing where the arrays are no such model."""
        ends = self.round == self.core.rounds or self.budget.ended_by
        if not isinstance(self.workload, Scored) or (self.round % self.core.score_every and not ends):
            return {}
        state = arrays.to_torch_state_dict()
        with self._phase("score"), seeded(self.core.seed, "score", self.round):
            model = self.workload.model()
            if state.keys() != model.state_dict().keys():
                return {}
            score = self.workload.score(load(model, state, pick_device(self.core.device)).eval(), self._progress)
        for name, png in score.pictures.items():
            self.run.keep_picture(name, self.round, png)
        return score.metrics

    @staticmethod
    def _config() -> ConfigRecord:
        return ConfigRecord()  # the strategy puts in the round

    @contextmanager
    def _phase(self, name: str, **fields: object) -> Iterator[None]:
        self.run.emit("phase", round=self.round, rounds=self.core.rounds, phase=name, **fields)
        started = time.monotonic()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started

    def _progress(self, phase: str, done: int, total: int) -> None:
        """Tell watchers about long server work, ten times a second at most."""
        if done == total or time.monotonic() - self._told > 0.1:
            self._told = time.monotonic()
            self.run.emit("progress", round=self.round, phase=phase, done=done, total=total)

    def _on_reply(self, partition: int, reply: Message) -> None:
        self.run.emit("client", round=self.round, client=self.names[partition], metrics=client_metrics(reply))


def mean_over(clients: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Plain mean of each metric over the clients that reported it; a client counts once, however large."""
    names = {name for metrics in clients.values() for name in metrics} - {EXAMPLES}
    reported = {name: [metrics[name] for metrics in clients.values() if name in metrics] for name in sorted(names)}
    return {name: sum(values) / len(values) for name, values in reported.items()}
