"""Limits to what one client adds to a round, from what the others add: for uploads that look valid and are not.

Of four clients and more, in this order (option ``server.agreement``):

1. a number of examples counts at most ``MAX_SHARE`` times the median;
2. an upload whose change points away from those of the others (mean cosine below ``OPPOSED``, or below 0 where it is
   too long by 3. as well) is left out;
3. a change of weights whose norm is more than ``MAX_CHANGE`` times the median norm is shortened to that, one of
   batch-norm statistics, which differ more between domains, to ``MAX_STATISTICS`` times.

A round in which no client goes beyond a limit has the bits that it has without limits. Updates with differential
privacy stay as they are, whose noise is calibrated to a sum. See docs/explanation/security.md for what this stops.

**Source**: norm bounding is that of Sun et al. 2019, Can You Really Backdoor Federated Learning?, section 4; the cosine
to the others is the score of Cao et al. 2021, FLTrust, with the other clients in the place of the server's update.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from flwr.app import ArrayRecord, Message, MetricRecord
from torch import Tensor

from fedlab.comm.tensors import content_bytes, tensor_record
from fedlab.strategies.protocol import ARRAYS, EXAMPLES, METRICS, arrays_of, client_metrics

FEWEST = 4  # clients without which there is no majority to compare with
MAX_SHARE, MAX_CHANGE, MAX_STATISTICS, OPPOSED = 2.0, 2.0, 5.0, -0.1
STATISTICS = "running_"  # begin of the last parts of the names of torch's batch-norm statistics
MEGABYTE = 1_000_000

State = Mapping[str, Tensor]


class Agreement:
    """The limits of one run.

    Parameters
    ----------
    max_replies_mb
        Megabytes of uploads beyond which those of a round are not compared, but used as they come.

    Attributes
    ----------
    notes
        Node to what was limited of its upload in the last round.
    """

    def __init__(self, max_replies_mb: float) -> None:
        self.max_bytes = max_replies_mb * MEGABYTE
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
            held = self._limit_changes([arrays_of(sent[reply.metadata.src_node_id]) for reply in held], held)
        yield from held

    def _cap_examples(self, replies: Sequence[Message]) -> None:
        counts = [int(client_metrics(reply)[EXAMPLES]) for reply in replies]
        most = int(MAX_SHARE * _lower_median(counts))
        for reply, count in zip(replies, counts, strict=True):
            if count > most:
                metrics = reply.content[METRICS]
                assert isinstance(metrics, MetricRecord)
                metrics[EXAMPLES] = most
                self._note(reply, f"its {count:,} examples count as {most:,}, {MAX_SHARE:g} times the median")

    def _limit_changes(self, starts: Sequence[State], replies: list[Message]) -> list[Message]:
        """Return the replies that are used; changes that are too long are shortened."""
        uploads = [arrays_of(reply.content) for reply in replies]
        names = [name for name, tensor in starts[0].items() if tensor.is_floating_point()]
        names = [name for name in names if all(name in state for state in (*starts, *uploads))]
        statistics = [name for name in names if name.rpartition(".")[2].startswith(STATISTICS)]
        weights = [name for name in names if name not in statistics]
        products = gram(starts, uploads, weights)
        cosines, lengths = mean_cosines(products), products.diagonal().clamp_min(0).sqrt().tolist()
        longest = MAX_CHANGE * _lower_median(lengths)
        opposed = [
            cosine < (0 if length > longest else OPPOSED) for cosine, length in zip(cosines, lengths, strict=True)
        ]
        if sum(opposed) * 2 >= len(replies):  # no majority
            opposed = [False] * len(replies)
        for reply, cosine, out in zip(replies, cosines, opposed, strict=True):
            if out:
                self._note(reply, f"its change opposes the others' (mean cosine {cosine:.2f}) and is left out")
        groups = ((weights, MAX_CHANGE, "change"), (statistics, MAX_STATISTICS, "change of statistics"))
        for group, most, what in groups:
            norms = gram(starts, uploads, group).diagonal().clamp_min(0).sqrt().tolist()
            limit = most * _lower_median(norms)
            for place, (reply, norm) in enumerate(zip(replies, norms, strict=True)):
                if norm > limit > 0 and not opposed[place]:
                    self._note(reply, f"its {what} is {norm / limit:.3g} times too long and is shortened")
                    uploads[place] = shortened(starts[place], uploads[place], group, limit / norm)
                    reply.content[ARRAYS] = tensor_record(uploads[place], copy=False)
        return [reply for reply, out in zip(replies, opposed, strict=True) if not out]

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


def mean_cosines(products: Tensor) -> list[float]:
    """Return each client's mean cosine to the others from inner products (clients, clients)."""
    norms = products.diagonal().clamp_min(0).sqrt()
    cosines = products / (norms[:, None] * norms[None]).clamp_min(1e-30)
    means: list[float] = ((cosines.sum(1) - cosines.diagonal()) / (len(products) - 1)).tolist()
    return means


def shortened(start: State, upload: State, names: Iterable[str], share: float) -> dict[str, Tensor]:
    """Return an upload whose change of these arrays is multiplied by ``share``."""
    return {**upload, **{name: start[name] + share * (upload[name] - start[name]) for name in names}}


def _lower_median(values: Sequence[float]) -> float:
    return sorted(values)[(len(values) - 1) // 2]
