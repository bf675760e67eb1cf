"""Local training of many clients at once, with each client's own random stream and each client's own errors.

Every client's batches are drawn from its stream, as its loop would draw them; then the clients' models are stacked and
take their steps together (``fedlab/vectorized``). Where that is impossible the clients train one after another, and
:func:`take_notes` says why. Results agree with the loop's to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby

import torch
from flwr.app import Message, RecordDict
from torch import Tensor

from fedlab.data.dataset import Batch
from fedlab.seeds import Stream, preserved, seeded
from fedlab.strategies.local_training import PHASE, LocalWork, Prepare, Reply, Trained, run
from fedlab.strategies.protocol import ClientContext, round_of
from fedlab.training import check_loss
from fedlab.vectorized.draws import NotVectorizable, draw
from fedlab.vectorized.memory import ClientMemory, measure
from fedlab.vectorized.stacked_model import StackedModel
from fedlab.vectorized.stacked_training import stack_batches, train_stacked
from fedlab.workload import Workload, blank_model

Outcome = RecordDict | Exception

PURPOSE = "train"  # first name of a client's random stream, as in the client app
COPIES = 6  # of the weights on a CPU: model, stack, gradient, at most two of the optimizer, one more of any
WINDOW_BYTES = 64 * 2**20  # of batches that are drawn ahead
_REFUSED: dict[str, str] = {}  # what cannot be vectorized in this process, and why
_NOTES: list[str] = []


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
class _Ready:
    """A client that is prepared, in the middle of its random stream."""

    number: int
    client: _Client
    stream: Stream
    work: LocalWork


class _ClientError(Exception):
    """One client cannot go on; the others can."""

    def __init__(self, number: int, error: Exception) -> None:
        super().__init__(str(error))
        self.number, self.error = number, error


@dataclass(frozen=True)
class ManyClients:
    """The training of many clients at once, of a strategy that answers with ``reply`` to what ``prepare`` asks for."""

    prepare: Prepare
    reply: Reply

    def __call__(
        self, workload: Workload, messages: Sequence[Message], contexts: Sequence[ClientContext]
    ) -> list[Outcome]:
        """Return each client's reply, or the exception that it raised; the others are not harmed by it.

        Each client's random stream is opened here, as the client app opens it for one client.
        """
        batch = _Batch(workload, self.prepare, self.reply)
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
        one, two = (self._bytes(workload, message, context, clients) for clients in (1, 2))
        return ClientMemory.through(one, two)

    def _bytes(self, workload: Workload, message: Message, context: ClientContext, clients: int) -> int:
        with preserved():
            ready = [
                _Ready(number, client, stream, self.prepare(workload, message, context))
                for number in range(clients)
                for client in (_Client(message, context),)
                for stream in (Stream("memory", number),)
            ]
            group = [replace(one, work=replace(one.work, steps=min(one.work.steps, 2))) for one in ready]
            peak = measure(group[0].work.device, partial(_train_stacked, workload, group))
        if group[0].work.device.type == "cuda":
            return peak
        size: int = sum(tensor.nbytes for tensor in group[0].work.start.values())
        return peak + size * clients * COPIES


def take_notes() -> list[str]:
    """Return the sentences that say why clients were not trained at once, each once a process, and forget them."""
    notes = list(_NOTES)
    _NOTES.clear()
    return notes


class _Batch:
    """The clients that train at once, and what becomes of each."""

    def __init__(self, workload: Workload, prepare: Prepare, reply: Reply) -> None:
        self.workload, self.prepare, self.reply = workload, prepare, reply
        self.outcomes: dict[int, Outcome] = {}

    def train(self, clients: dict[int, _Client]) -> None:
        """Train all clients, from the beginning of their streams."""
        ready = [one for number, client in clients.items() if (one := self._ready(number, client))]
        ready.sort(key=_kind)
        for _, group in groupby(ready, _kind):
            together = sorted(group, key=lambda one: -one.work.steps)
            some = {one.number: one.client for one in together}
            try:
                self._train_group(together)
            except NotVectorizable as error:
                self._refuse(_subject(self.workload, together[0].work), str(error))
                self._train_one_by_one(some)
            except _ClientError as error:
                self.outcomes[error.number] = error.error
                self.train({number: client for number, client in some.items() if number != error.number})
            except torch.OutOfMemoryError:
                self._train_halves(some)
            except Exception as error:
                self._train_one_by_one(some)  # which says whose values are wrong, for instance a label of no class
                if not any(isinstance(self.outcomes[number], Exception) for number in some):
                    reason = f"{type(error).__name__}: {error}".splitlines()[0]
                    self._refuse(_subject(self.workload, together[0].work), reason)

    def _ready(self, number: int, client: _Client) -> _Ready | None:
        stream = Stream(*client.names)
        try:
            with stream:
                return _Ready(number, client, stream, self.prepare(self.workload, client.message, client.context))
        except Exception as error:
            self.outcomes[number] = error
            return None

    def _train_group(self, group: Sequence[_Ready]) -> None:
        if refused := _REFUSED.get(_subject(self.workload, group[0].work)):
            raise NotVectorizable(refused)
        states, losses = _train_stacked(self.workload, group)
        for one, state, values in zip(group, states, losses, strict=True):
            self.outcomes[one.number] = self._answer(one, state, values)

    def _answer(self, one: _Ready, state: dict[str, Tensor], losses: Sequence[float]) -> Outcome:
        try:
            for step, value in enumerate(losses, 1):
                check_loss(value, PHASE, step, len(losses))
            trained = Trained(state, sum(losses) / len(losses) if losses else None)
            with one.stream:
                return self.reply(self.workload, one.client.message, one.client.context, one.work, trained)
        except Exception as error:
            return error

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
                with seeded(*client.names):
                    work = self.prepare(self.workload, client.message, client.context)
                    trained = run(self.workload, work)
                    self.outcomes[number] = self.reply(self.workload, client.message, client.context, work, trained)
            except Exception as error:
                self.outcomes[number] = error

    def _refuse(self, subject: str, reason: str) -> None:
        if subject not in _REFUSED:
            _REFUSED[subject] = reason
            _note(f"clients of this workload cannot train at once, and train one after another: {reason}")


def _train_stacked(workload: Workload, group: Sequence[_Ready]) -> tuple[list[dict[str, Tensor]], list[list[float]]]:
    """Train clients of one kind, those with the most steps first; return states and losses of each."""
    works = [one.work for one in group]
    first = works[0]
    states, extra = [work.start for work in works], [work.extra for work in works]
    one = blank_model(workload).to(first.device).train()
    for name in first.frozen:
        one.get_parameter(name).requires_grad_(False)
    model = StackedModel(one, states, workload.loss, first.penalty, extra)
    steps, settings = [work.steps for work in works], [work.optimizer for work in works]
    return train_stacked(model, _Feed(model, group), steps, settings, first.ema_decay)


def _note(sentence: str) -> None:
    if sentence not in _NOTES:
        _NOTES.append(sentence)


def _subject(workload: Workload, work: LocalWork) -> str:
    """Name of that which can or cannot be vectorized: the workload and the penalty."""
    return f"{workload!r} {work.penalty!r}"


def _kind(one: _Ready) -> str:
    """Clients of one kind have stacked models, one optimizer but for its learning rate, and batches of one shape."""
    work = one.work
    settings = replace(work.optimizer, learning_rate=0.0)
    columns = {name: (column.dtype, tuple(column.shape[1:])) for name, column in work.data.columns.items()}
    training = (settings, work.batch_size, work.ema_decay, work.penalty, sorted(work.extra), sorted(work.frozen))
    return repr((training, sorted(columns.items())))


class _Feed:
    """Batches of many clients, a window of steps ahead, each from its client's stream.

    In each step the loop draws a batch, and then what its loss draws.
    """

    def __init__(self, model: StackedModel, group: Sequence[_Ready]) -> None:
        self.model, self.group, self.device = model, group, group[0].work.device
        self.plan = model.record(self._trial()) if group[0].work.steps else []
        self.drawn: list[list[tuple[Batch, list[Tensor]]]] = []
        self.start = self.end = 0
        self.window = 1  # steps; a first batch shows how many fit

    def _trial(self) -> Batch:
        """Return a first batch of some client, whose stream is not touched."""
        work = self.group[0].work
        try:
            with seeded("a trial of the loss"):
                batch = work.data.sample_batch(work.batch_size)
        except Exception as error:
            raise _ClientError(self.group[0].number, error) from error
        return {name: column.to(self.device) for name, column in batch.items()}

    def __call__(self, step: int, count: int) -> tuple[Batch, list[Tensor]]:
        """Return the batches of the first ``count`` clients in a step, and the numbers that their losses draw."""
        if step == self.end:
            self.start, self.end = step, step + self.window
            self.drawn = [self._batches(one, step) for one in self.group[:count]]
            size = sum(column.nbytes for drawn in self.drawn for column in (*drawn[0][0].values(), *drawn[0][1]))
            self.window = max(1, WINDOW_BYTES // max(size, 1))
        batches, numbers = zip(*(drawn[step - self.start] for drawn in self.drawn[:count]), strict=True)
        stacked = [torch.stack(each).to(self.device) for each in zip(*numbers, strict=True)]
        return stack_batches(batches, self.device), stacked

    def _batches(self, one: _Ready, step: int) -> list[tuple[Batch, list[Tensor]]]:
        work = one.work
        try:
            with one.stream:
                return [
                    (work.data.sample_batch(work.batch_size), draw(self.plan))
                    for _ in range(min(self.window, work.steps - step))
                ]
        except Exception as error:
            raise _ClientError(one.number, error) from error
