"""Limits to what one client adds to a round, from what the others add: for uploads that look valid and are not.

Of four clients and more, in this order (option ``server.agreement``):

1. a number of examples counts at most as the median; another number by which clients weigh (q-FedAvg's loss, the
   threshold of (FL)^2) is moved to between half and ``TOO_MUCH`` times the median of its distance from the value at
   which a client weighs nothing;
2. an upload whose change points away from those of the others (mean cosine below ``OPPOSED``, or below 0 where it is
   also longer than ``TOO_MUCH`` times the median) is left out;
3. a change of weights whose norm is above the median norm is shortened to that, and so is one of batch-norm statistics.

What one client sends then weighs at most as much as what the median client sends, and is at most as long. These two
limits do the work where clients have different domains: their changes are nearly orthogonal, so that a direction tells
little about a client.

Where the number of steps follows from that of the examples (``client.epochs``), norms are those of one step, by the
examples that count. A client whose examples are capped is thus shortened to the steps of so many, and FedNova and
SCAFFOLD, which divide by them, compute with the same number.

The limits remember nothing between rounds. Updates with differential privacy stay as they are, since their noise is
calibrated to a sum. See docs/explanation/security.md for what this stops and what it costs.

**Source**: norm bounding is that of Sun et al. 2019, Can You Really Backdoor Federated Learning?, section 4; the median
as the bound is a quantile as in Andrew et al. 2021, Differentially Private Learning with Adaptive Clipping, section 3,
here that of the round itself. The cosine to the others is the score of Cao et al. 2021, FLTrust, with the other clients
in the place of the server's update.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from flwr.app import ArrayRecord, Message, MetricRecord
from torch import Tensor

from fedlab.comm.tensors import content_bytes, tensor_record
from fedlab.config.training_options import ClientConfig
from fedlab.strategies.protocol import ARRAYS, EXAMPLES, METRICS, arrays_of, client_metrics
from fedlab.training import effective_steps

FEWEST = 4  # clients without which there is no majority to compare with
OPPOSED = -0.1  # mean cosine to the others
TOO_MUCH = 2.0  # times the median: what is limited from there on is noted
STATISTICS = "running_"  # begin of the last parts of the names of torch's batch-norm statistics
MEGABYTE = 1_000_000

State = Mapping[str, Tensor]
Number = TypeVar("Number", int, float)


class Agreement:
    """The limits of one run.

    Parameters
    ----------
    max_replies_mb
        Megabytes of uploads beyond which those of a round are not compared, but used as they come.
    training
        Local training of the clients, by which a number of examples is one of steps.
    weighed_by
        Metrics by which clients weigh, each with the value at which one weighs nothing.

    Attributes
    ----------
    notes
        Node to what was limited of its upload in the last round.
    """

    def __init__(self, max_replies_mb: float, training: ClientConfig, weighed_by: Mapping[str, float] = {}) -> None:
        self.max_bytes, self.training, self.weighed_by = max_replies_mb * MEGABYTE, training, weighed_by
        self.notes: dict[int, str] = {}

    def limited(self, messages: Sequence[Message], replies: Iterable[Message]) -> Iterator[Message]:
        """Yield validated replies to these messages, limited by each other."""
        self.notes = {}
        sent = {message.metadata.dst_node_id: message.content for message in messages}
        has_arrays = all(isinstance(content.get(ARRAYS), ArrayRecord) for content in sent.values())
        if not has_arrays or sum(content_bytes(content) for content in sent.values()) > self.max_bytes:
            yield from replies
            return
        held = list(replies)
        if len(held) >= FEWEST and all(isinstance(reply.content.get(ARRAYS), ArrayRecord) for reply in held):
            self._cap_examples(held)
            for name, zero in self.weighed_by.items():
                self._limit_weights(held, name, zero)
            held = self._limit_changes([arrays_of(sent[reply.metadata.src_node_id]) for reply in held], held)
        yield from held

    def _cap_examples(self, replies: Sequence[Message]) -> None:
        counts = [int(client_metrics(reply)[EXAMPLES]) for reply in replies]
        most = _lower_median(counts)
        for reply, count in zip(replies, counts, strict=True):
            if count > most:
                metrics = reply.content[METRICS]
                assert isinstance(metrics, MetricRecord)
                metrics[EXAMPLES] = most
            if count > TOO_MUCH * most:
                self._note(reply, f"its {count:,} examples count as {most:,}, the median")

    def _limit_weights(self, replies: Sequence[Message], name: str, zero: float) -> None:
        """Move a metric by which clients weigh to between half and ``TOO_MUCH`` times the median distance from zero."""
        values = [client_metrics(reply)[name] for reply in replies]
        median = _lower_median([abs(value - zero) for value in values])
        side = -1 if any(value < zero for value in values) else 1  # a strategy refuses those on the other one
        for reply, value in zip(replies, values, strict=True):
            distance = abs(value - zero)
            counted = min(max(distance, median / TOO_MUCH), TOO_MUCH * median)
            if counted != distance:
                metrics = reply.content[METRICS]
                assert isinstance(metrics, MetricRecord)
                metrics[name] = zero + side * counted
                self._note(reply, f"its {name} of {value:.3g} counts as {metrics[name]:.3g}, by the median of all")

    def _limit_changes(self, starts: Sequence[State], replies: list[Message]) -> list[Message]:
        """Return the replies that are used; changes that are too long are shortened."""
        uploads = [arrays_of(reply.content) for reply in replies]
        names = [name for name, tensor in starts[0].items() if tensor.is_floating_point()]
        names = [name for name in names if all(name in state for state in (*starts, *uploads))]
        statistics = [name for name in names if name.rpartition(".")[2].startswith(STATISTICS)]
        weights = [name for name in names if name not in statistics]
        products, paces = gram(starts, uploads, weights), [self._pace(reply) for reply in replies]
        lengths = relative(norms_of(products), paces)
        other = relative(norms_of(gram(starts, uploads, statistics)), [1.0] * len(replies))
        opposed = opposing(mean_cosines(products), lengths)
        for place, (reply, cosine) in enumerate(zip(replies, opposed, strict=True)):
            if cosine is not None:
                self._note(reply, f"its change opposes the others' (mean cosine {cosine:.2f}) and is left out")
                continue
            self._shorten(reply, starts[place], "change", weights, lengths[place])
            self._shorten(reply, starts[place], "change of statistics", statistics, other[place])
        return [reply for reply, cosine in zip(replies, opposed, strict=True) if cosine is None]

    def _pace(self, reply: Message) -> float:
        """Return the number of effective steps of a client's change, 1 where all clients take the same."""
        if not self.training.epochs:
            return 1.0
        steps = self.training.local_steps(int(client_metrics(reply)[EXAMPLES]))
        return effective_steps(steps, self.training.momentum)

    def _shorten(self, reply: Message, start: State, what: str, names: Collection[str], length: float) -> None:
        """Shorten a change of these arrays that is so many times as long as the median, if it is longer."""
        if length > 1:
            reply.content[ARRAYS] = tensor_record(
                shortened(start, arrays_of(reply.content), names, 1 / length), copy=False
            )
        if length > TOO_MUCH:
            self._note(reply, f"its {what} is {length:.3g} times as long as the median, and is shortened to that")

    def _note(self, reply: Message, what: str) -> None:
        node = reply.metadata.src_node_id
        self.notes[node] = f"{self.notes[node]}; {what}" if node in self.notes else what


def gram(starts: Sequence[State], uploads: Sequence[State], names: Iterable[str]) -> Tensor:
    """Return the inner products (clients, clients) of the changes of these arrays."""
    total = torch.zeros(len(uploads), len(uploads), dtype=torch.float64)
    for name in names:
        changes = [(upload[name] - start[name]).flatten() for upload, start in zip(uploads, starts, strict=True)]
        stacked = torch.stack(changes)
        total += (stacked @ stacked.T).double()
    return total


def norms_of(products: Tensor) -> list[float]:
    """Return the norms of changes (clients,) from their inner products (clients, clients)."""
    norms: list[float] = products.diagonal().clamp_min(0).sqrt().tolist()
    return norms


def relative(norms: Sequence[float], paces: Sequence[float]) -> list[float]:
    """Return norms of one step as multiples of their lower median; 0 where the median is 0."""
    steps = [norm / pace for norm, pace in zip(norms, paces, strict=True)]
    median = _lower_median(steps)
    return [step / median if median else 0.0 for step in steps]


def mean_cosines(products: Tensor) -> list[float]:
    """Return each client's mean cosine to the others from inner products (clients, clients)."""
    norms = products.diagonal().clamp_min(0).sqrt()
    cosines = products / (norms[:, None] * norms[None]).clamp_min(1e-30)
    means: list[float] = ((cosines.sum(1) - cosines.diagonal()) / (len(products) - 1)).tolist()
    return means


def opposing(cosines: Sequence[float], lengths: Sequence[float]) -> list[float | None]:
    """Return each client's mean cosine to the others if its change is left out, else None.

    Where half of the clients or more oppose the others there is no majority, and none is left out.

    Parameters
    ----------
    lengths
        Norms of the changes, as multiples of the median.
    """
    found = [
        cosine if cosine < (0 if length > TOO_MUCH else OPPOSED) else None
        for cosine, length in zip(cosines, lengths, strict=True)
    ]
    return found if (len(found) - found.count(None)) * 2 < len(found) else [None] * len(found)


def shortened(start: State, upload: State, names: Iterable[str], share: float) -> dict[str, Tensor]:
    """Return an upload whose change of these arrays is multiplied by ``share``."""
    return {**upload, **{name: start[name] + share * (upload[name] - start[name]) for name in names}}


def _lower_median(values: Sequence[Number]) -> Number:
    return sorted(values)[(len(values) - 1) // 2]
