"""A stream moved on is the stream after as many draws, to the last byte of its state."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedlab.skipped_draws import CountedDraws, moved_on


def drawn(seed, before, count):
    generator = torch.Generator().manual_seed(seed)
    for number in (before, count):
        start = generator.get_state()
        if number:
            torch.rand(number, generator=generator)
    return start, generator.get_state()


@pytest.mark.parametrize("before", [0, 1, 300, 623, 624, 625])
@pytest.mark.parametrize("count", [0, 1, 623, 624, 625, 20_000, 34 * 624, 34 * 624 + 1, 1_000_003])
def test_it_is_where_draws_lead(before, count):
    start, end = drawn(5, before, count)
    kept = start.clone()
    assert torch.equal(moved_on(start, count), end)
    assert torch.equal(start, kept)


@pytest.mark.parametrize("seed", range(4))
def test_two_moves_are_one(seed):
    start, _ = drawn(seed, 17, 0)
    both = moved_on(moved_on(start, 123_456_789), 987_654_321)
    assert torch.equal(both, moved_on(start, 123_456_789 + 987_654_321))


def test_draws_of_layers_are_counted():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with CountedDraws() as counted:
        model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Linear(7, 11))
    assert counted.count == 5 * 27 + 5 + 77 + 11
    assert torch.equal(moved_on(before, counted.count), torch.get_rng_state())
    assert counted.places == {
        weight.untyped_storage().data_ptr() for weight in (*model[0].parameters(), *model[2].parameters())
    }


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.randn(3),
        lambda: torch.rand(3),
        lambda: torch.empty(4, dtype=torch.float64).uniform_(),
        lambda: torch.randperm(3),
        lambda: torch.empty(4).normal_(),
    ],
)
def test_other_draws_are_seen_by_where_the_stream_is(draw):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with CountedDraws() as counted:
        torch.empty(4).uniform_()
        torch.empty(4).uniform_(generator=torch.Generator())
        draw()
    assert counted.count == 4
    assert not torch.equal(moved_on(before, counted.count), torch.get_rng_state())
