"""The record of a Flower app's run: rounds, metrics, bytes, seconds and failures, written as those of any other run."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from flwr.app import Message, MessageType

from fedlab.comm.tensors import content_bytes
from fedlab.errors import RunError
from fedlab.flower_apps.messages import EXAMPLES, add_arrays, is_number, is_training, kind_of, metrics_of, round_of
from fedlab.metrics import AUXILIARY_ORDER, COMMON_METRICS, COMMON_PHASES, Metric
from fedlab.runs.directory import RunDirectory
from fedlab.runs.manifest import now
from fedlab.runs.metrics import MetricTable, mean_over

UNDECLARED = (  # apps declare nothing; these names are usual
    Metric("train_num-examples", "training examples", role="hidden"),
    Metric("train_*loss*", higher_is_better=False, order=AUXILIARY_ORDER + 1, role="auxiliary"),
    Metric("train_*", order=AUXILIARY_ORDER + 1, role="auxiliary"),
    Metric("accuracy", higher_is_better=True),
    Metric("*acc*", higher_is_better=True),
    Metric("*auc*", higher_is_better=True),
    Metric("*f1*", higher_is_better=True),
    Metric("*loss*", higher_is_better=False, order=AUXILIARY_ORDER, role="auxiliary"),
    Metric("*error*", higher_is_better=False),
    Metric("*mse*", higher_is_better=False),
    Metric("*mae*", higher_is_better=False),
)
DECLARED = MetricTable((*UNDECLARED, *COMMON_METRICS), COMMON_PHASES)
PHASES = {MessageType.TRAIN: "clients", MessageType.EVALUATE: "evaluate"}  # others are called as their messages


@dataclass
class RoundRecord:
    """The facts of a round so far; clients are keyed by node."""

    number: int
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    score: dict[str, float] = field(default_factory=dict)
    traffic: dict[int, dict[str, int]] = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)
    asked: dict[str, set[int]] = field(default_factory=dict)
    answered: dict[str, set[int]] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """True if nothing was measured and no message was sent."""
        return not (self.asked or self.score)

    def unanswered(self) -> str:
        """Return the type of message that clients failed to answer, all of them; "" where there is none."""
        return next((kind for kind in self.asked if self.failures and not self.answered.get(kind)), "")


class Recorder:
    """Writes the rounds of an app into a run directory, from the messages that pass.

    Parameters
    ----------
    run
        The run directory.
    partitions
        Node id to partition of every client.
    rounds
        Number of rounds to come; 0: not known yet.
    """

    def __init__(self, run: RunDirectory, partitions: Mapping[int, int], rounds: int = 0) -> None:
        self.run, self.partitions, self.rounds = run, partitions, rounds
        self.names = {node: f"client-{partition}" for node, partition in partitions.items()}
        self.strategy = ""
        self._round = RoundRecord(0)
        self._digest, self._hashed = hashlib.sha256(), 0
        self._seconds: dict[str, float] = {}
        self._began = time.monotonic()
        self._seen: set[str] = set()
        self.run.update_manifest(**DECLARED.to_manifest())

    # --- the server ---

    def on_start(self, strategy: str, rounds: int) -> None:
        """Record which strategy begins, and for how many rounds."""
        self.strategy, self.rounds = strategy, rounds or self.rounds

    def on_evaluate(self, number: int, metrics: Mapping[str, Any]) -> None:
        """Record what the server's own test of the global model found."""
        self._go_to(number)
        self._round.score |= {name: float(value) for name, value in metrics.items() if is_number(value)}

    @contextmanager
    def clock(self, phase: str) -> Iterator[None]:
        """Add the time of the body to a phase."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._seconds[phase] = self._seconds.get(phase, 0.0) + time.monotonic() - started

    # --- messages ---

    def begins_round(self, messages: Sequence[Message]) -> bool:
        """Return True if messages to be sent belong to a later round than those before."""
        return bool(messages) and self._number(messages) > self._round.number

    def _number(self, messages: Sequence[Message]) -> int:
        """Return the round of messages; where they do not say it, a client trains once a round by each function."""
        stated = next((number for number in map(round_of, messages) if number is not None), None)
        if stated is not None:
            return stated
        asked = self._round.asked.get(messages[0].metadata.message_type, set())
        again = not self._round.number or asked & {message.metadata.dst_node_id for message in messages}
        return self._round.number + int(bool(again and is_training(messages[0])))

    def on_send(self, messages: Sequence[Message]) -> None:
        """Record messages that the server sends; they may begin a round.

        Raises
        ------
        RunError
            When no client could answer in the round before.
        """
        if not messages:
            return
        self._go_to(self._number(messages))
        nodes, kind = {message.metadata.dst_node_id for message in messages}, messages[0].metadata.message_type
        if kind not in self._round.asked:
            phase = phase_of(kind_of(messages[0]))
            self.run.emit("phase", round=self._round.number, rounds=self._total(), phase=phase, clients=len(messages))
        self._round.asked.setdefault(kind, set()).update(nodes)
        for message in messages:
            self._count(message, "down", message.metadata.dst_node_id)

    def on_reply(self, message: Message, reply: Message) -> None:
        """Record a client's reply, or that there is none."""
        node, kind = message.metadata.dst_node_id, message.metadata.message_type
        if reply.has_error():
            self._fail(node, kind_of(message), reply.error.reason or f"error {reply.error.code}")
            return
        self._round.answered.setdefault(kind, set()).add(node)
        self._count(reply, "up", node)
        metrics = metrics_of(reply)
        self._round.metrics.setdefault(node, {}).update(metrics)
        self.run.emit("client", round=self._round.number, client=self.names[node], metrics=metrics)

    def on_replies(self, replies: Sequence[Message]) -> None:
        """Add the arrays of replies that came together, in the order of nodes, to the hash of the run.

        Raises
        ------
        RunError
            When all of several replies are errors.
        """
        for reply in replies:
            if not reply.has_error():
                self._hashed += add_arrays(self._digest, reply.content)
        if len(replies) > 1 and all(reply.has_error() for reply in replies):
            self.finish_round()

    def _fail(self, node: int, kind: str, reason: str) -> None:
        client, partition, phase = self.names[node], self.partitions[node], phase_of(kind)
        self.run.emit(
            "client_failed",
            round=self._round.number,
            phase=phase,
            partition=partition,
            client=client,
            kind="error",
            reason=next((f"as {one['client']}" for one in self._round.failures if one["reason"] == reason), reason),
        )
        self._round.failures.append(
            {"client": client, "partition": partition, "phase": phase, "kind": "error", "reason": reason}
        )

    def _count(self, message: Message, direction: str, node: int) -> None:
        kinds = dict.fromkeys(("train_down", "train_up", "evaluate_down", "evaluate_up"), 0)
        phase = MessageType.TRAIN if is_training(message) else MessageType.EVALUATE
        self._round.traffic.setdefault(node, kinds)[f"{phase}_{direction}"] += content_bytes(message.content)

    # --- rounds ---

    def _total(self) -> int:
        return max(self.rounds, self._round.number)

    def _go_to(self, number: int) -> None:
        if number > self._round.number:
            self.finish_round()
            self._round = RoundRecord(number)

    def finish_round(self) -> None:
        """Write the line of the round that ends; one in which nothing happened has none.

        Raises
        ------
        RunError
            When no client could answer one kind of message.
        """
        record, self._round = self._round, RoundRecord(self._round.number)
        if record.is_empty:
            return
        record.failures.sort(key=lambda one: int(one["partition"]))
        clients = {self.names[node]: record.metrics[node] for node in sorted(record.metrics) if record.metrics[node]}
        self._declare({name for values in (*clients.values(), record.score) for name in values})
        mean = mean_over(clients, without=(EXAMPLES, f"train_{EXAMPLES}"))
        self.run.log_round(
            {
                "round": record.number,
                "clients": clients,
                "mean": mean,
                "server": {},
                "score": record.score,
                "bytes": {self.names[node]: record.traffic[node] for node in sorted(record.traffic)},
                "failures": [{**one, "reason": one["reason"].strip().splitlines()[-1]} for one in record.failures],
                "absent": [],
                "notes": [],
                "privacy": None,
                "seconds": self._take_seconds(),
            }
        )
        rounds = self._total()
        self.run.emit("round", round=record.number, rounds=rounds, mean=mean, clients=clients, score=record.score)
        if kind := record.unanswered():
            first = record.failures[0]
            raise RunError(
                f"no client could answer a message of type {kind!r} in round {record.number}; {first['client']}: "
                f"{first['reason'].strip()}"
            )

    def _take_seconds(self) -> dict[str, float]:
        ended = time.monotonic()
        server = max(0.0, ended - self._began - sum(self._seconds.values()))
        found = {phase: round(value, 4) for phase, value in {**self._seconds, "server": server}.items()}
        self._began, self._seconds = ended, {}
        return found

    def _declare(self, names: set[str]) -> None:
        """Declare metrics by their whole names, as a score needs them, once each is seen."""
        if new := names - self._seen:
            self._seen |= new
            exact = tuple(DECLARED.find(name) for name in sorted(self._seen))
            self.run.update_manifest(metrics=[asdict(metric) for metric in (*exact, *DECLARED.metrics)])

    def finish(self) -> None:
        """Record the end of the run.

        Raises
        ------
        RunError
            As :meth:`finish_round`, and when nothing was measured and no message was sent.
        """
        self.finish_round()
        if not self.run.rounds():
            raise RunError("the ServerApp ended without a message to any client, so there is nothing to show")
        digest = self._digest.hexdigest() if self._hashed else ""  # replies may have no arrays
        facts = {"strategy": self.strategy} if self.strategy else {}
        self.run.update_manifest(status="finished", ended=now(), ended_by="rounds", weights_sha256=digest, **facts)
        self.run.emit("finished", weights_sha256=digest)


def phase_of(kind: str) -> str:
    """Return the phase of a kind of message."""
    return PHASES.get(kind, kind)
