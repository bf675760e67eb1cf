"""Batches gathered for all clients beside those that each client draws alone, wherever their data is stored."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from fedlab.data.dataset import ArrayDataset
from fedlab.seeds import Stream, preserved, seeded
from fedlab.strategies.client_batches import GatheredBatches, MadeBatches

CPU, BATCH, STEPS = torch.device("cpu"), 4, (3, 3, 2, 1)


def columns(seed, rows=30):
    generator = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(rows, 2, 3, generator=generator), "y": torch.randint(9, (rows,), generator=generator)}


def shared():
    """Four clients, each some rows of one set."""
    whole = ArrayDataset(columns(0))
    return [whole.select(torch.arange(number, 30, 4)) for number in range(4)]


def separate():
    return [ArrayDataset(columns(number, 10 + number)) for number in range(4)]


def mixed():
    """Two clients share a set, between and behind others that have their own; one of these is a selection."""
    whole = ArrayDataset(columns(0))
    own = ArrayDataset(columns(1))
    return [own, whole.select(slice(0, 9)), ArrayDataset(columns(2)).select(slice(3, 20)), whole.select(slice(9, 30))]


def renamed():
    """Two columns of one kind, whose names are exchanged in every other set."""
    one, other = (columns(seed)["x"] for seed in (0, 1))
    return [ArrayDataset({"x": one, "y": other} if number % 2 else {"y": one, "x": other}) for number in range(4)]


def streams():
    return [Stream("client", number) for number in range(4)]


@pytest.mark.parametrize("sets", [shared, separate, mixed, renamed])
def test_batches_are_those_of_each_client_alone(sets):
    made = []
    for number, data in enumerate(sets()):
        with seeded("client", number):
            made.append([data.sample_batch(BATCH) for _ in range(STEPS[number])])
    with preserved():
        gathered = GatheredBatches(sets(), BATCH, STEPS, streams(), [], CPU)
        one_by_one = MadeBatches(sets(), BATCH, STEPS, streams(), [], CPU, None, made[0][0])
        for step in range(3):
            count = sum(steps > step for steps in STEPS)
            for feed in (gathered, one_by_one):
                batch, numbers = feed(step, count)
                assert not numbers and all(len(column) == count for column in batch.values())
                for client in range(count):
                    assert all(torch.equal(batch[name][client], made[client][step][name]) for name in ("x", "y"))


def test_the_batches_of_each_client_are_checked_before_they_are_stacked():
    def check(batch):
        seen.append(len(batch["y"]))

    seen: list[int] = []
    with preserved():
        MadeBatches(shared(), BATCH, (1, 1, 1, 1), streams(), [], CPU, check, shared()[0][:BATCH])(0, 4)
    assert seen == [BATCH] * 4


@pytest.mark.parametrize("made", [False, True], ids=["gathered", "made"])
def test_what_is_drawn_ahead_is_freed_without_a_garbage_collection(made):
    like = shared()[0][:BATCH]
    rest = (CPU, None, like) if made else (CPU,)
    gc.disable()
    try:
        with preserved():
            feed = (MadeBatches if made else GatheredBatches)(shared(), BATCH, STEPS, streams(), [], *rest)
            feed(0, 4)
        ahead = weakref.ref(feed.ahead)
        del feed
        assert ahead() is None
    finally:
        gc.enable()
