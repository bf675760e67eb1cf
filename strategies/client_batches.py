"""Batches of many clients, each drawn from its client's stream: what the steps of stacked models are fed with.

Where a data set is columns alone, a client draws row numbers, and the examples of all clients are taken from the
columns by one operation, on the device if they fit there. Where batches are made as they are read (a transform, a check
of their values, a data set with a way of its own to draw), each client's is drawn and made by itself.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from fedlab.data.dataset import ArrayDataset, Batch
from fedlab.data.device_copies import copy_to
from fedlab.data.pinned import send
from fedlab.seeds import Stream
from fedlab.strategies.drawn_ahead import DrawnAhead, RowsAhead
from fedlab.vectorized.draws import Draw, draw
from fedlab.vectorized.stacked_training import stack_batches

Feed = Callable[
    [int, int], tuple[Batch, list[Tensor]]
]  # batch, counted over all steps; first clients -> columns, draws


class GatheredBatches:
    """Batches of sets that are columns alone: the ``number``-th of the first ``count`` clients, and what losses draw.

    Parameters
    ----------
    sets
        Data set of each client.
    batch_size, batches, streams, plan
        As of :class:`RowsAhead`.
    device
        Where to train.
    """

    def __init__(
        self,
        sets: Sequence[ArrayDataset],
        batch_size: int,
        batches: Sequence[int],
        streams: Sequence[Stream],
        plan: Sequence[Draw],
        device: torch.device,
    ) -> None:
        self.device = device
        self.stores: dict[Hashable, tuple[Batch, list[int]]] = {}  # columns, positions of the clients that share them
        for position, one in enumerate(sets):
            key = tuple((name, id(column)) for name, column in one.stored.items())
            self.stores.setdefault(key, (one.stored, []))[1].append(position)
        if device.type != "cpu":
            self.stores = {
                key: (copy_to(columns, device) or columns, positions)
                for key, (columns, positions) in self.stores.items()
            }
        table = torch.cat([one.rows for one in sets])
        self.ahead = RowsAhead(list(map(len, sets)), batch_size, batches, streams, plan, self._home(), table)
        self._places: tuple[int, list[Tensor], Tensor | None] = -1, [], None

    def _home(self) -> torch.device:
        """Return where rows are looked up: on the device, unless columns of some client are not there."""
        devices = {column.device for columns, _ in self.stores.values() for column in columns.values()}
        return devices.pop() if len(devices) == 1 else torch.device("cpu")

    def __call__(self, number: int, count: int) -> tuple[Batch, list[Tensor]]:
        """Return columns (count, examples, ...) on the device, and numbers (count, ...).

        Raises
        ------
        ClientError
            When clients' draws fail.
        """
        rows, numbers = self.ahead(number, count)
        if len(self.stores) == 1:
            (columns, _), *_ = self.stores.values()
            batch = {name: send(column[rows], self.device) for name, column in columns.items()}
        else:
            batch = self._of_several(rows, count)
        return batch, [send(one, self.device) for one in numbers]

    def _of_several(self, rows: Tensor, count: int) -> dict[str, Tensor]:
        """Return the columns of clients with data in several places, in the order of the clients."""
        if count != self._places[0]:
            own = [positions[: bisect_left(positions, count)] for _, positions in self.stores.values()]
            order = torch.tensor([position for positions in own for position in positions])
            is_sorted = torch.equal(order, torch.arange(count))
            back = None if is_sorted else send(order.argsort(), self.device)
            self._places = count, [send(torch.tensor(one), rows.device) for one in own if one], back
        _, places, back = self._places
        parts: list[dict[str, Tensor]] = []
        for place, (columns, _) in zip(places, self.stores.values(), strict=False):  # the last have no client any more
            here = {name: column[send(rows[place], column.device)] for name, column in columns.items()}
            parts.append({name: send(column, self.device) for name, column in here.items()})
        batch = {name: torch.cat([one[name] for one in parts]) for name in parts[0]}
        return batch if back is None else {name: column[back] for name, column in batch.items()}


class MadeBatches:
    """Batches that are made as they are read, client by client; called as :class:`GatheredBatches`.

    Parameters
    ----------
    check
        Called with each client's batch; None: no check.
    like
        A batch, which shows how large they are; empty where no client has a step.
    """

    def __init__(
        self,
        sets: Sequence[ArrayDataset],
        batch_size: int,
        batches: Sequence[int],
        streams: Sequence[Stream],
        plan: Sequence[Draw],
        device: torch.device,
        check: Callable[[Batch], None] | None,
        like: Batch,
    ) -> None:
        self.sets, self.batch_size, self.plan, self.device, self.check = sets, batch_size, plan, device, check
        size = sum(column.nbytes for column in like.values()) + sum(one.nbytes for one in plan)
        self.ahead = DrawnAhead[list[tuple[Batch, list[Tensor]]]](size, batches, streams)

    def __call__(self, number: int, count: int) -> tuple[Batch, list[Tensor]]:
        """Return columns (count, examples, ...) on the device, and numbers (count, ...).

        Raises
        ------
        ClientError
            When clients' draws fail.
        """
        self.ahead.reach(number, count, self._draw)
        place = number - self.ahead.start
        batches, numbers = zip(*(drawn[place] for drawn in self.ahead.drawn[:count]), strict=True)
        stacked = [send(torch.stack(each), self.device) for each in zip(*numbers, strict=True)]
        return stack_batches(batches, self.device), stacked

    def _draw(self, stream: Stream, position: int, batches: int) -> list[tuple[Batch, list[Tensor]]]:
        drawn = []
        with stream:
            for _ in range(batches):
                batch = self.sets[position].sample_batch(self.batch_size)
                if self.check:
                    self.check(batch)
                drawn.append((batch, draw(self.plan)))
        return drawn
