"""What a loss draws: recorded, repeated from a stream, put back."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import dropout

from fedlab.seeds import seeded
from fedlab.vectorized.draws import NotVectorizable, Replay, draw, record


def loss(model, batch):
    x = dropout(batch["x"], 0.5) + torch.randn_like(batch["x"])
    x = model(dropout(x, 0.3, training=False)) * torch.rand(2)
    return (x * torch.randint(1, 9, (4, 1)) + torch.randint_like(x, 5)).sum() + torch.randperm(7)[0]


@pytest.fixture
def model():
    return nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2), nn.Dropout(0.4), nn.Dropout(0.0))


@pytest.fixture
def batch():
    return {"x": torch.rand(4, 3)}


def test_a_loss_with_its_numbers_put_back_is_the_loss_that_draws_them(model, batch):
    plan = record(loss, model, batch)
    assert [tuple(one.shape) for one in plan] == [(4, 3), (4, 3), (4, 2), (2,), (4, 1), (4, 2), (7,)]
    with seeded("a stream"):
        own, after = loss(model, batch), torch.rand(1)
    with seeded("a stream"):
        numbers, here = draw(plan), torch.rand(1)
    with Replay(plan, numbers):
        replayed = loss(model, batch)
    assert torch.equal(here, after)  # the stream is where it was
    torch.testing.assert_close(replayed, own)


def test_numbers_come_in_the_order_of_memory(batch):
    x = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
    plan = record(lambda model, batch: torch.randn_like(batch["x"]).sum(), nn.Identity(), {"x": x})
    with seeded("a stream"):
        own = torch.randn_like(x)
    with seeded("a stream"):
        assert torch.equal(draw(plan)[0], own)


def test_recording_changes_neither_the_model_nor_a_stream(model, batch):
    before, stream = {name: tensor.clone() for name, tensor in model.state_dict().items()}, torch.get_rng_state()
    record(loss, model, batch)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(stream, torch.get_rng_state())


def test_draws_that_differ_from_step_to_step_are_refused(model, batch):
    plan = record(loss, model, batch)
    for other in (lambda: torch.rand(4), lambda: [torch.randn_like(batch["x"]) for _ in range(2)]):
        with pytest.raises(NotVectorizable, match="differs from step to step"), Replay(plan[1:2], draw(plan[1:2])):
            other()


def test_draws_that_depend_on_values_are_refused(model, batch):
    with pytest.raises(NotVectorizable, match="depends on values"):
        record(lambda model, batch: torch.randint(0, torch.tensor(5), (2,)).sum(), model, batch)
