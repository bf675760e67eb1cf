"""Rows drawn ahead for many clients: each client's are those of its own loop, whatever the windows."""

from __future__ import annotations

import pytest
import torch

from fedlab.seeds import Stream, preserved, seeded
from fedlab.strategies import drawn_ahead
from fedlab.strategies.drawn_ahead import RowsAhead
from fedlab.strategies.vectorized import ClientError
from fedlab.vectorized.draws import Draw

CPU = torch.device("cpu")
LENGTHS, STEPS, BATCH = (50, 20, 7), (6, 6, 2), 10
NOISE = Draw(torch.randn, torch.Size([3]), 12, lambda: torch.randn(3))


def streams():
    return [Stream("client", number) for number in range(len(LENGTHS))]


def by_the_loop(plan):
    """For each client its rows and numbers in each step, as the loop draws them."""
    found = []
    for number, (length, steps) in enumerate(zip(LENGTHS, STEPS, strict=True)):
        with seeded("client", number):
            found.append([(torch.randint(length, (BATCH,)), [one.sample() for one in plan]) for _ in range(steps)])
    return found


@pytest.mark.parametrize("plan", [[], [NOISE, NOISE]], ids=["rows", "rows and numbers"])
@pytest.mark.parametrize("window", [1, 3 * 2 * (8 * BATCH + 24), 2**20])
def test_each_client_draws_what_it_draws_alone(monkeypatch, plan, window):
    monkeypatch.setattr(drawn_ahead, "WINDOW_BYTES", window)
    alone, starts = by_the_loop(plan), (0, 50, 70)
    with preserved():
        ahead = RowsAhead(LENGTHS, BATCH, STEPS, streams(), plan, CPU)
        for step in range(max(STEPS)):
            count = sum(steps > step for steps in STEPS)
            rows, numbers = ahead(step, count)
            assert rows.shape == (count, BATCH) and len(numbers) == len(plan)
            for client in range(count):
                assert torch.equal(rows[client], alone[client][step][0] + starts[client])
                assert all(
                    torch.equal(each[client], one) for each, one in zip(numbers, alone[client][step][1], strict=True)
                )


def test_rows_are_looked_up_in_a_table():
    table = torch.arange(77) * 10
    with preserved():
        plain, _ = RowsAhead(LENGTHS, BATCH, STEPS, streams(), [], CPU)(0, 3)
        found, _ = RowsAhead(LENGTHS, BATCH, STEPS, streams(), [], CPU, table)(0, 3)
    assert torch.equal(found, plain * 10)


@pytest.mark.parametrize(("lengths", "failed"), [((50, 0, 7), [1]), ((0, 50, 0), [0, 2])])
def test_all_clients_without_rows_are_named(lengths, failed):
    with preserved(), pytest.raises(ClientError) as raised:
        RowsAhead(lengths, BATCH, STEPS, streams(), [], CPU)(0, 3)
    assert list(raised.value.errors) == failed
