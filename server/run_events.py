"""Events of a round, which a display follows in ``events.jsonl``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from flwr.app import Message

from fedlab.comm.replies import ClientFailure
from fedlab.comm.stacked_replies import config_of
from fedlab.config.schema import Config
from fedlab.runs.directory import RunDirectory
from fedlab.strategies.protocol import CONFIG, NOTE, client_metrics

MAX_NOTE = 500  # characters of a client's note that are logged
PROGRESS_SECONDS, CLIENT_SECONDS = 0.1, 1.0  # between two events of the progress of a phase, of a client


class RunEvents:
    """Appends events of the current round.

    Parameters
    ----------
    current
        Returns the current round.
    """

    def __init__(self, run: RunDirectory, config: Config, current: Callable[[], int]) -> None:
        self.run, self.names, self.current = run, dict(enumerate(config.clients)), current
        self.rounds, self.clients_have_notes = config.run.rounds, config.run.vectorizes
        self._last_progress = 0.0

    def note(self, text: str, **about: object) -> None:
        """Report a sentence, and what else is known about it."""
        self.run.emit("note", round=self.current(), note=text, **about)

    def phase(self, name: str, **about: object) -> None:
        """Announce a phase."""
        self.run.emit("phase", round=self.current(), rounds=self.rounds, phase=name, **about)

    def progress(self, phase: str, done: int, total: int) -> None:
        """Report progress of long server work, ten times a second at most."""
        if done == total or time.monotonic() - self._last_progress > PROGRESS_SECONDS:
            self._last_progress = time.monotonic()
            self.run.emit("progress", round=self.current(), phase=phase, done=done, total=total)

    def client_progress(self, partition: int, phase: str, done: int, total: int) -> None:
        """Report a client's progress in a phase, once a second at most."""
        if time.monotonic() - self._last_progress > CLIENT_SECONDS:
            self._last_progress = time.monotonic()
            client = self.names[partition]
            self.run.emit("progress", round=self.current(), phase=phase, done=done, total=total, client=client)

    def waiting(self, partitions: Iterable[int], left: float) -> None:
        """Report whom the round waits for, and how many seconds are left."""
        names = [self.names[partition] for partition in sorted(partitions)]
        self.run.emit("waiting", round=self.current(), clients=names, seconds_left=round(left, 1))

    def replies(self, replies: Sequence[tuple[int, Message]]) -> None:
        """Report valid replies with what was measured, and how a process of this machine trains its clients."""
        for _, reply in replies if self.clients_have_notes else ():
            if (entries := config_of(reply, CONFIG)) is not None and NOTE in entries:
                self.note(str(entries[NOTE])[:MAX_NOTE])
        found: list[Mapping[str, object]] = [
            {"round": self.current(), "client": self.names[partition], "metrics": client_metrics(reply)}
            for partition, reply in replies
        ]
        self.run.emit_all("client", found)

    def failures(self, phase: str, failures: Iterable[ClientFailure]) -> None:
        """Report the clients that failed in a phase."""
        for failure in failures:
            self.run.emit(
                "client_failed",
                round=self.current(),
                phase=phase,
                partition=failure.partition,
                client=self.names[failure.partition],
                kind=failure.kind,
                reason=failure.reason,
            )
