"""ServerApp: builds workload and strategy from the config, runs the loop of rounds, writes the run directory.

Flower's ``Strategy.start`` calls four methods of a strategy a round. This loop calls the first three and adds what
``start`` cannot do: begin at the round after a checkpoint, time each phase, count bytes by client, stop with an error
message when too few clients answer. The fourth, ``aggregate_evaluate``, is replaced by an unweighted mean over the
clients that reported, so that strategies stay comparable.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedlab import __version__
from fedlab.comm.grid import PartitionGrid
from fedlab.comm.replies import PhaseStats
from fedlab.comm.roster import SERVER, Roster
from fedlab.comm.sampling import Sampler
from fedlab.comm.tensors import tensor_record, tensors_of
from fedlab.config.schema import Config, parse_join_rounds
from fedlab.device_errors import explained
from fedlab.engines.superlink_grid import reading_step_by_step
from fedlab.exits import exits_as_errors
from fedlab.precision import computing_in
from fedlab.privacy.accounting import describe
from fedlab.registry import app_config, config_from_text, refresh
from fedlab.runs import pretrain_cache
from fedlab.runs.checkpoints import weights_sha256
from fedlab.runs.client_progress import listening
from fedlab.runs.client_state import check_states
from fedlab.runs.consent import config_digest
from fedlab.runs.directory import RunDirectory, current_directory
from fedlab.runs.manifest import now
from fedlab.runs.metrics import MetricTable, mean_over
from fedlab.seeds import deterministic, seeded, turns
from fedlab.server.attempts import Attempts
from fedlab.server.budget import Budget
from fedlab.server.cohorts import samplers
from fedlab.server.early_stop import EarlyStop
from fedlab.server.global_model import global_model
from fedlab.server.phase_clock import PhaseClock
from fedlab.server.round_record import failures, traffic
from fedlab.server.run_events import RunEvents
from fedlab.server.run_trackers import open_trackers
from fedlab.strategies import validation
from fedlab.strategies.agreement import Agreement
from fedlab.strategies.protocol import (
    CHECKPOINTS,
    EXAMPLES,
    FINAL,
    RUN,
    StrategySpec,
    client_metrics,
)
from fedlab.training import resolve_device
from fedlab.workload import SupportsScoring, Workload

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one federation, from its start or from its newest checkpoint, to its last round."""
    refresh(config_from_text(*app_config(context.run_config)))
    config = config_from_text(*app_config(context.run_config))
    directory = current_directory()
    run = RunDirectory.open(directory) if directory else RunDirectory.create(Path("runs"), config)
    with run:
        time_key = "resumed" if "started" in run.manifest() else "started"
        run.update_manifest(
            **{time_key: now()}, status="running", error=None, device=str(resolve_device(config.run.device))
        )
        try:
            device = resolve_device(config.run.device)
            with deterministic(config.run.threads), computing_in(config.run.precision, device), exits_as_errors():
                RoundLoop(grid, config, run).run_rounds()
        except BaseException as raised:
            error = explained(raised)
            run.note_end(error)
            if error is not raised:
                raise error from raised
            if isinstance(error, OSError):  # alone: of a process of its own, the first error in the log is shown
                raise run.stopped_by(error) from None
            raise


class RoundLoop:
    """Loop of rounds of one federation, and its records in the run directory."""

    def __init__(self, grid: Grid, config: Config, run: RunDirectory) -> None:
        self.config, self.run = config, run
        self.pretrains = config.server.pretrain_steps > 0
        self.workload: Workload = config.workload
        self.names, self.round = dict(enumerate(config.clients)), 0
        self.events = RunEvents(run, config, lambda: self.round)
        spec: StrategySpec = config.plugins["strategy"].spec
        self.strategy = spec.server(self.workload, config, self.events.progress)
        self.client_state, self.final_phase = spec.client_state, spec.final_phase
        self.identity = {RUN: str(run.manifest().get("id", ""))} if spec.client_state else {}
        self.grid = PartitionGrid(
            Roster(
                reading_step_by_step(grid, config.comm.max_reply_mb),
                self.names,
                run.registered_nodes(),
                self.run.emit,
                RecordDict({SERVER: ConfigRecord({"version": __version__, "config": config_digest(config)})}),
            ),
            min_clients=config.run.min_clients or len(self.names),
            join_rounds=parse_join_rounds(config.run.join_rounds, self.names),
            round_timeout=config.comm.round_timeout,
            max_reply_mb=config.comm.max_reply_mb,
            wire_format=config.comm.compression,
            on_replies=self.events.replies,
            on_waiting=self.events.waiting,
        )
        declared = MetricTable.declared(spec, config.plugins["workload"].spec)
        self.run.update_manifest(**declared.to_manifest())
        self.budget = Budget(config.run.budget_bytes, config.run.budget_seconds, declared.evaluation_phases)
        self.stop = EarlyStop(config.stop, declared)
        account = self.strategy.privacy()
        self.train_sampler, self.evaluate_sampler = samplers(
            self.workload, config, secret=account is not None and account.secret
        )
        simulated = config.plugins["engine"].spec.simulates_clients
        self.attempts = Attempts(1 if simulated else config.comm.attempts, self.strategy, self._repeat)
        self._clock = PhaseClock()
        self._notes: list[dict[str, Any]] = []  # about the round, until it is recorded
        self._failed_attempts: list[PhaseStats] = []  # at the current phase

    def run_rounds(self) -> None:
        """Run from the newest checkpoint, or from the start, to the last round."""
        checkpoint = self.run.checkpoints.rewind()
        if checkpoint and self.client_state and self.config.plugins["engine"].spec.simulates_clients:
            check_states(self.run.path, self.run.rounds(), checkpoint[0], self.names)
        begin = checkpoint[0] + 1 if checkpoint else 0
        named = self.train_sampler.named(max(begin, 1))
        self.run.emit("connecting", clients=len(self.names if named is None else named))
        with seeded(self.config.run.seed, "roster"):
            self.grid.wait_for_clients(begin, self.config.comm.connect_timeout, named)
        with open_trackers(self.config, self.run, checkpoint[0] if checkpoint else -1, self.events.note) as trackers:
            if checkpoint:
                arrays = self._restore(*checkpoint)
            else:
                arrays = self._initialize()
                if account := self.strategy.privacy():
                    self.events.note(describe(account.record()))
                trackers.add(self._finish_round(arrays, *self._tested(arrays)))
            while self.round < self.config.run.rounds and not self._ended_by():
                self.round += 1
                self._start_round()
                arrays, stats = self.attempts.train(partial(self._train, arrays))
                trackers.add(self._finish_round(arrays, *self._tested(arrays), train=stats))
        self._finish(arrays)

    def _start_round(self) -> None:
        """Wait until enough clients are connected for the round."""
        with seeded(self.config.run.seed, "roster"):
            enough, named = self.train_sampler.count(len(self.names)), self.train_sampler.named(max(self.round, 1))
            self.grid.start_round(self.round, self.config.comm.connect_timeout, enough, named)

    def _repeat(self, note: str) -> None:
        """Prepare another attempt at a phase of the same round."""
        self._failed_attempts.append(self.grid.stats)
        self._notes.append({"note": note})
        self.events.note(note)
        self._start_round()

    def _phase_stats(self) -> PhaseStats:
        """Return bytes and failures of the phase, with the bytes of failed attempts at it, which have moved as well."""
        stats = self.grid.stats
        while self._failed_attempts:
            stats.add_bytes(self._failed_attempts.pop())
        return stats

    def _restore(self, server_round: int, state: Mapping[str, Any]) -> ArrayRecord:
        """Go on from a checkpoint."""
        self.round = server_round
        arrays = tensor_record(state["arrays"], copy=False)
        self.strategy.restore(state["strategy"])
        self.grid.restore(state["refused"])
        self.budget.restore(self.run.rounds())
        self.stop.restore(self.run.rounds(), self.config.run.evaluate_every)
        self.budget.exhausted = self._exhausted()
        if self.strategy.privacy():  # each resume counts a release, see PrivacyAccount.restore
            self._save_checkpoint(arrays)
        self.run.emit("resumed", round=self.round)
        return arrays

    def _finish(self, arrays: ArrayRecord) -> None:
        """Record the end of the run."""
        if self.budget.ended_by:
            self.events.note(self.budget.message(self.round))
        elif self._ended_by():
            self.events.note(self.stop.message(self.round))
        digest = weights_sha256({"arrays": tensors_of(arrays), "strategy": self.strategy.state()})
        self.run.update_manifest(
            status="finished",
            ended=now(),
            ended_by=self._ended_by() or "rounds",
            best_round=self.stop.best_round,
            weights_sha256=digest,
        )
        self.run.emit("finished", weights_sha256=digest)

    def _initialize(self) -> ArrayRecord:
        phase = "pretrain" if self.pretrains else "start"
        caching = pretrain_cache.use_cache(self.config.checkpoint.pretrain_cache)
        seed_scope = seeded(self.config.run.seed, "initialise")
        with self._phase(phase), caching as cache, seed_scope:
            arrays = self.strategy.initialize()
        self._clock.seconds[phase] += cache.saved_seconds
        self.budget.add(0, self._clock.seconds)
        return arrays

    def _train(self, arrays: ArrayRecord) -> tuple[ArrayRecord, PhaseStats]:
        self._select("train", self.train_sampler)
        with self._phase("server"), seeded(self.config.run.seed, "configure", self.round):
            config = self._config()
            if self.client_state:
                config[CHECKPOINTS] = self.run.checkpoints.rounds()
            messages = list(self.strategy.configure_train(self.round, arrays, config, self.grid))
        shown_as = self.final_phase if self._is_last else "clients"
        replies = self._exchange("clients", messages, self._check, shown_as)
        with self._phase("server", announce=False), seeded(self.config.run.seed, "aggregate", self.round):
            used = self._agreed(messages, replies)
            aggregated, _ = self.strategy.aggregate_train(self.round, used)
            deque(used, maxlen=0)  # a strategy may leave replies unread; failures are known only after the last
        stats = self._phase_stats()
        self.budget.exhausted = self._exhausted()
        self.budget.add(sum(stats.down.values()) + sum(stats.up.values()), self._clock.seconds)
        return aggregated if aggregated is not None else arrays, stats

    def _ended_by(self) -> str:
        """Return what ends the run with this round before the last: a spent budget, or a metric; "" for nothing."""
        earlier = self.round < self.config.run.rounds
        return self.budget.ended_by or ("metric" if earlier and self.stop.is_last(self.round) else "")

    @property
    def _is_last(self) -> bool:
        return self.round == self.config.run.rounds or bool(self._ended_by())

    def _agreed(self, messages: list[Message], replies: Iterator[Message]) -> Iterator[Message]:
        """Yield the replies of a round within the limits that they set each other; log what was limited."""
        if not messages or not self.config.clients_limit_each_other or self.strategy.privacy() is not None:
            yield from replies
            return
        agreement = Agreement(self.config.server.max_replies_mb, self.config.client, self.strategy.weighed_by())
        yield from agreement.limited(messages, replies)
        for node, what in agreement.notes.items():
            name = self.names[self.grid.partition_of[node]]
            self.events.note(f"client {name}: {what}", client=name)

    def _exhausted(self) -> str:
        """Return why the privacy budget allows no further round; empty if it does, or none is to come."""
        account = self.strategy.privacy()
        return account.exhausted() if account and self.round < self.config.run.rounds else ""

    def _tested(self, arrays: ArrayRecord) -> tuple[dict[str, Any], dict[str, float], PhaseStats]:
        return self.attempts.evaluate(partial(self._evaluate, arrays), clients_leave=self._is_last)

    def _evaluate(self, arrays: ArrayRecord) -> tuple[dict[str, Any], dict[str, float], PhaseStats]:
        if not (self.config.client.evaluate and self._is_due(self.config.run.evaluate_every)):
            return {}, {}, PhaseStats()
        self._select("evaluate", self.evaluate_sampler)
        with seeded(self.config.run.seed, "evaluate", self.round):
            config = self._config()
            messages = list(self.strategy.configure_evaluate(self.round, arrays, config, self.grid))
        clients = {
            self.names[self.grid.partition_of[reply.metadata.src_node_id]]: client_metrics(reply)
            for reply in self._exchange("evaluate", messages, validation.validate_reply)
        }
        return clients, mean_over(clients, without=(EXAMPLES,)), self._phase_stats()

    def _is_due(self, every: int) -> bool:
        """Return True in round 0, in the last round, and in every ``every``-th."""
        return self._is_last or self.round % every == 0

    def _select(self, phase: str, sampler: Sampler) -> None:
        """Let the clients of this phase take part, and no other."""
        self.grid.select(None)
        self.grid.select(sampler.draw(phase, self.round, self.grid.expected, self.grid.nodes, self.attempts.failed))

    def _check(self, message: Message, reply: Message) -> None:
        validation.validate_reply(message, reply)
        self.strategy.check(reply)

    def _exchange(
        self, phase: str, messages: list[Message], check: Callable[[Message, Message], None], shown_as: str = ""
    ) -> Iterator[Message]:
        """Yield the valid replies in the order of partitions; only the time spent here counts as the phase's.

        Each pull of replies has a random stream of its own, whose numbers nobody uses: what carries the messages draws
        from the global generators, and how often depends on the engine. Clients of this process take turns in it.
        """
        self.events.phase(shown_as or phase, clients=len(messages))
        batches = self.grid.batches(messages, idle_timeout=self.config.comm.idle_timeout, check=check)
        try:
            while True:
                with (
                    self._clock(phase),
                    seeded(self.config.run.seed, "exchange"),
                    turns(),
                    listening(self.events.client_progress),
                ):
                    replies = next(batches, None)
                if replies is None:
                    return
                yield from replies
        finally:
            self.events.failures(phase, self.grid.stats.failures)

    def _finish_round(
        self,
        arrays: ArrayRecord,
        clients: dict[str, Any],
        mean: dict[str, float],
        evaluate: PhaseStats,
        train: PhaseStats | None = None,
    ) -> dict[str, Any]:
        """Record the round: its line of metrics first, then its checkpoint, from which resuming starts."""
        train, notes, score = train or PhaseStats(), self.strategy.events(), self._score(arrays)
        for note in notes:
            self.run.emit("note", round=self.round, **note)
        notes, self._notes = [*self._notes, *notes], []
        failed = failures(self.names, train, evaluate)
        absent = [self.names[partition] for partition in self.grid.missing()]
        record = {
            "round": self.round,
            "clients": clients,
            "mean": mean,
            "server": dict(self.strategy.metrics()),
            "score": score,
            "bytes": traffic(self.names, train, evaluate),
            "failures": failed,
            "absent": absent,
            "notes": notes,
            "privacy": account.record() if (account := self.strategy.privacy()) else None,
            "seconds": {phase: round(value, 4) for phase, value in self._clock.seconds.items()},
        }
        self.stop.add(record)
        self.run.log_round(record)
        if self._is_due(self.config.checkpoint.every) or self.stop.best_round == self.round:
            self._save_checkpoint(arrays)
        lost = {*absent, *(failure["client"] for failure in failed)} - clients.keys()
        metrics = {"mean": mean, "clients": clients, "score": dict(score), "without": sorted(lost)}
        self.run.emit("round", round=self.round, rounds=self.config.run.rounds, **metrics)
        self._clock.reset()
        return record

    def _save_checkpoint(self, arrays: ArrayRecord) -> None:
        self.run.checkpoints.save(
            self.round,
            {
                "arrays": tensors_of(arrays),
                "strategy": self.strategy.state(),
                "refused": self.grid.refusals.state(),
            },
            self.config.checkpoint.keep,
            self.config.checkpoint.keep_initial,
            self.stop.best_round,
        )

    def _score(self, arrays: ArrayRecord) -> dict[str, float]:
        """Return the metrics of the global model itself; empty where the arrays are not such a model."""
        run, found = self.config.run, dict[str, float]()
        tested = self.config.server.evaluate and self._is_due(run.evaluate_every)
        scored = isinstance(self.workload, SupportsScoring) and self._is_due(run.sample_every)
        if (tested or scored) and (model := global_model(self.config, arrays)) is not None:
            if tested:
                with self._phase("test"), seeded(run.seed, "test", self.round):
                    found |= self.workload.evaluate(model, self.workload.data(None, "test"))
            if scored and isinstance(self.workload, SupportsScoring):
                with self._phase("score"), seeded(run.seed, "score", self.round):
                    score = self.workload.score(model, self.events.progress)
                for name, png in score.pictures.items():
                    self.run.save_image(name, self.round, png)
                found |= score.metrics
        return found

    def _config(self) -> ConfigRecord:
        """Return the config of a message; the strategy puts in the round."""
        final: dict[str, bool] = {FINAL: True} if self._ended_by() else {}
        return ConfigRecord({**self.identity, **final})

    @contextmanager
    def _phase(self, name: str, *, announce: bool = True) -> Iterator[None]:
        """Announce a phase, unless another one goes on within it, and measure its seconds."""
        if announce:
            self.events.phase(name)
        with self._clock(name):
            yield
