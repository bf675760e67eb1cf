"""Local training of many clients at once, with each client's own random stream and each client's own errors.

A strategy gives its clients' training in parts (:class:`Together`). What comes before and after the steps is done
client by client, each on its stream; the steps of all are taken together, for instance on stacked weights
(``fedlab/vectorized``). Where that is impossible the clients train one after another, and :func:`take_notes` says why.
Results agree with the loop's to rounding.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from flwr.app import Message, RecordDict

from fedlab.comm.stacked_replies import StackedContent, StackedContents
from fedlab.exits import exits_as_errors
from fedlab.precision import current_precision
from fedlab.seeds import Stream, in_turn, preserved, seeded
from fedlab.strategies.protocol import ClientContext, round_of
from fedlab.training import check_losses
from fedlab.vectorized.draws import NotVectorizable
from fedlab.vectorized.memory import ClientMemory, measure
from fedlab.workload import Workload

Outcome = RecordDict | StackedContent | Exception

PURPOSE = "train"  # first name of a client's random stream, as in the client app
_REFUSED: dict[str, str] = {}  # what cannot be vectorized in this process, and why
_NOTES: list[str] = []


class Work(Protocol):
    """The work of a client in a round, as far as it matters here."""

    @property
    def device(self) -> torch.device:
        """Where to train."""
        ...

    @property
    def steps(self) -> int:
        """Number of steps."""
        ...


W = TypeVar("W", bound=Work)
R = TypeVar("R")


class Together(Protocol[W, R]):
    """The training of a strategy's clients in parts, of which the steps of many clients can be taken together."""

    @property
    def phase(self) -> str:
        """Name of the steps in errors."""
        ...

    def prepare(self, workload: Workload, message: Message, context: ClientContext) -> W:
        """Return what a client is to do, on its random stream."""
        ...

    def run(self, workload: Workload, work: W) -> R:
        """Do it, on the stream that the preparation has left: the loop."""
        ...

    def run_many(
        self, workload: Workload, works: Sequence[W], streams: Sequence[Stream]
    ) -> list[tuple[R, list[float]]]:
        """Return the results of several clients of one kind, and the losses of each, one a step.

        Clients with the most steps come first.

        Raises
        ------
        NotVectorizable
            When they cannot be trained at once.
        ClientError
            When some clients cannot go on.
        """
        ...

    def reply(self, workload: Workload, message: Message, context: ClientContext, work: W, result: R) -> RecordDict:
        """Return the client's answer, on its stream."""
        ...

    def kind(self, work: W) -> Hashable:
        """Return what clients that train together have in common."""
        ...

    def subject(self, workload: Workload, work: W) -> str:
        """Return the name of that which can or cannot be vectorized."""
        ...

    def shortened(self, work: W) -> W:
        """Return the work with so few steps as show its memory."""
        ...

    def resident(self, work: W) -> int:
        """Return the bytes of a client that :func:`fedlab.vectorized.memory.measure` does not see in its steps."""
        ...


@runtime_checkable
class StacksReplies(Protocol):
    """Parts whose replies to many clients may be found at once, since nothing in them is drawn."""

    def replies(
        self,
        workload: Workload,
        messages: Sequence[Message],
        contexts: Sequence[ClientContext],
        works: Sequence[Any],
        results: Sequence[Any],
    ) -> StackedContents | None:
        """Return the clients' answers, those of ``reply`` one by one; None where each has to be asked for its own."""
        ...


class ClientError(Exception):
    """Some clients cannot go on; the others can, once more from the beginning: so all that is known is told at once.

    Parameters
    ----------
    errors
        By position what each of them ran into, at least one.
    """

    def __init__(self, errors: Mapping[int, Exception]) -> None:
        super().__init__(str(next(iter(errors.values()))))
        self.errors = dict(errors)


@dataclass
class _Client:
    """One client of a batch: what it is asked, and its random stream."""

    message: Message
    context: ClientContext

    @property
    def names(self) -> tuple[int | str, ...]:
        """Names of its random stream."""
        return self.context.config.run.seed, PURPOSE, round_of(self.message), self.context.partition


@dataclass
class _Ready(Generic[W]):
    """A client that is prepared, in the middle of its random stream."""

    number: int
    client: _Client
    stream: Stream
    work: W
    kind: Hashable


@dataclass(frozen=True)
class ManyClients:
    """The training of many clients at once, of a strategy that gives it in parts."""

    parts: Together[Any, Any]

    def __call__(
        self, workload: Workload, messages: Sequence[Message], contexts: Sequence[ClientContext]
    ) -> list[Outcome]:
        """Return each client's reply, or the exception that it raised; the others are not harmed by it.

        Each client's random stream is opened here, as the client app opens it for one client.
        """
        batch = _Batch(workload, self.parts)
        clients = [_Client(message, context) for message, context in zip(messages, contexts, strict=True)]
        with preserved():
            batch.train(dict(enumerate(clients)))
        return [batch.outcomes[number] for number in range(len(clients))]

    def memory(self, workload: Workload, message: Message, context: ClientContext) -> ClientMemory:
        """Return the memory of so many clients like this one, from a step of one and of two of them.

        Raises
        ------
        NotVectorizable
            When such clients cannot be trained at once.
        """
        with exits_as_errors():
            one, two = (self._bytes(workload, message, context, clients) for clients in (1, 2))
        return ClientMemory.through(one, two)

    def _bytes(self, workload: Workload, message: Message, context: ClientContext, clients: int) -> int:
        streams, works = [Stream("memory", number) for number in range(clients)], []
        with preserved():
            for stream in streams:
                with stream:
                    works.append(self.parts.shortened(self.parts.prepare(workload, message, context)))
            peak = measure(works[0].device, partial(self.parts.run_many, workload, works, streams))
        return peak + sum(map(self.parts.resident, works))


def take_notes() -> list[str]:
    """Return the sentences that say why clients were not trained at once, each once a process, and forget them."""
    notes = list(_NOTES)
    _NOTES.clear()
    return notes


class _Batch(Generic[W, R]):
    """The clients that train at once, and what becomes of each."""

    def __init__(self, workload: Workload, parts: Together[W, R]) -> None:
        self.workload, self.parts = workload, parts
        self.outcomes: dict[int, Outcome] = {}

    def train(self, clients: dict[int, _Client]) -> None:
        """Train all clients, from the beginning of their streams."""
        groups = dict[Hashable, list[_Ready[W]]]()
        for one in self._ready(clients):
            groups.setdefault(one.kind, []).append(one)
        for group in groups.values():
            together = sorted(group, key=lambda one: -one.work.steps)
            some = {one.number: one.client for one in together}
            try:
                with exits_as_errors():
                    self._train_group(together)
            except NotVectorizable as error:
                self._refuse(together[0].work, str(error))
                self._train_one_by_one(some)
            except ClientError as error:
                failed = {together[position].number: one for position, one in error.errors.items()}
                self.outcomes |= failed
                self.train({number: client for number, client in some.items() if number not in failed})
            except torch.OutOfMemoryError:
                self._train_halves(some)
            except Exception as error:
                self._train_one_by_one(some)  # which says whose values are wrong, for instance a label of no class
                if not any(isinstance(self.outcomes[number], Exception) for number in some):
                    reason = f"{type(error).__name__}: {error}".splitlines()[0]
                    self._refuse(together[0].work, reason)

    def _ready(self, clients: dict[int, _Client]) -> list[_Ready[W]]:
        """Prepare each client, on its stream."""
        ready, numbers = dict[int, _Ready[W]](), list(clients)
        streams = [Stream(*client.names) for client in clients.values()]

        def prepare(position: int) -> None:
            number, client = numbers[position], clients[numbers[position]]
            ready.pop(number, None)
            try:
                with exits_as_errors():
                    work = self.parts.prepare(self.workload, client.message, client.context)
                ready[number] = _Ready(number, client, streams[position], work, self.parts.kind(work))
            except Exception as error:
                self.outcomes[number] = error

        in_turn(streams, prepare)
        return list(ready.values())

    def _train_group(self, group: Sequence[_Ready[W]]) -> None:
        works = [one.work for one in group]
        if current_precision() == "bf16":
            raise NotVectorizable("automatic mixed precision does not reach all that is mapped (precision=bf16)")
        if refused := _REFUSED.get(self._subject(works[0])):
            raise NotVectorizable(refused)
        trained = self.parts.run_many(self.workload, works, [one.stream for one in group])
        stacked = self._stacked(group, [result for result, _ in trained])

        def answer(position: int) -> None:
            one, (result, losses) = group[position], trained[position]
            try:
                check_losses(losses, self.parts.phase)
                self.outcomes[one.number] = (
                    self.parts.reply(self.workload, one.client.message, one.client.context, one.work, result)
                    if stacked is None
                    else StackedContent(stacked, position)
                )
            except Exception as error:
                self.outcomes[one.number] = error

        if stacked is None:
            in_turn([one.stream for one in group], answer)
        else:  # nothing in them is drawn
            for position in range(len(group)):
                answer(position)

    def _stacked(self, group: Sequence[_Ready[W]], results: Sequence[R]) -> StackedContents | None:
        if not isinstance(self.parts, StacksReplies):
            return None
        clients = [one.client for one in group]
        messages, contexts = [one.message for one in clients], [one.context for one in clients]
        return self.parts.replies(self.workload, messages, contexts, [one.work for one in group], results)

    def _train_halves(self, clients: dict[int, _Client]) -> None:
        """Train half as many at a time; one that does not fit alone says so itself."""
        numbers = list(clients)
        if len(numbers) == 1:
            self._train_one_by_one(clients)
            return
        _note(f"{len(numbers)} clients at once do not fit into memory, so {-(-len(numbers) // 2)} train at a time")
        for some in (numbers[: -(-len(numbers) // 2)], numbers[-(-len(numbers) // 2) :]):
            self.train({number: clients[number] for number in some})

    def _train_one_by_one(self, clients: dict[int, _Client]) -> None:
        for number, client in clients.items():
            try:
                with seeded(*client.names), exits_as_errors():
                    work = self.parts.prepare(self.workload, client.message, client.context)
                    result = self.parts.run(self.workload, work)
                    self.outcomes[number] = self.parts.reply(
                        self.workload, client.message, client.context, work, result
                    )
            except Exception as error:
                self.outcomes[number] = error

    def _subject(self, work: W) -> str:
        return f"{current_precision()} {self.parts.subject(self.workload, work)}"

    def _refuse(self, work: W, reason: str) -> None:
        subject = self._subject(work)
        if subject not in _REFUSED:
            _REFUSED[subject] = reason
            _note(f"clients of this workload cannot train at once, and train one after another: {reason}")


def _note(sentence: str) -> None:
    if sentence not in _NOTES:
        _NOTES.append(sentence)
