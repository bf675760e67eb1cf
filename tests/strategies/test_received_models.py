"""A received model is that of a new one with weights loaded, and leaves every random stream where that would."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from fedlab.errors import IncompatibleWeightsError
from fedlab.seeds import seeded
from fedlab.strategies import received_models
from fedlab.strategies.received_models import received_model

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def large(monkeypatch):
    """Networks of a few weights are large."""
    monkeypatch.setattr(received_models, "MIN_DRAWS", 10)
    received_models._known.clear()


class Layers(nn.Module):
    def __init__(self, extra=None):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 300), nn.BatchNorm1d(300), nn.Linear(300, 3)
        self.extra = extra() if extra else None


def workload(made, extra=None):
    def model():
        made.append(1)
        return Layers(extra)

    return SimpleNamespace(model=model)


def received(one, number):
    """State of the model of a message, and what its stream gives next."""
    state = {name: value + number for name, value in Layers().state_dict().items()}
    with seeded("message", number):
        model = received_model(one, state, CPU)
        return model, state, torch.rand(3), random.random(), np.random.rand(), model.extra


def made_anew(one, number):
    with seeded("message", number):
        model = one.model()
        return torch.rand(3), random.random(), np.random.rand(), model.extra


def same(one, other):
    return tuple(one[1:3]) == tuple(other[1:3]) and torch.equal(one[0], other[0])


def test_the_stream_goes_on_as_after_a_new_model_and_models_are_made_no_more():
    made = []
    one = workload(made)
    for number in range(6):
        torch.manual_seed(number)
        model, state, *after = received(one, number)
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert all(weight.requires_grad for weight in model.parameters()) and model.training
        assert same(after, made_anew(workload([]), number))
    assert len(made) == 3  # two that were looked at, and the template of all others


@pytest.mark.parametrize(
    "extra",
    [lambda: torch.empty(5).uniform_(), lambda: torch.randn(4), lambda: random.random(), lambda: np.random.rand()],
    ids=["kept", "normal", "random", "numpy"],
)
def test_a_model_that_draws_for_something_else_is_made_anew(extra):
    made = []
    one = workload(made, extra)
    for number in range(4):
        *_, after, first, second, kept = received(one, number)
        wanted = made_anew(workload([], extra), number)
        assert same((after, first, second), wanted)
        assert torch.equal(torch.as_tensor(kept), torch.as_tensor(wanted[3]))
    assert len(made) == 4


def test_a_small_model_is_made_anew(monkeypatch):
    monkeypatch.setattr(received_models, "MIN_DRAWS", 10_000)
    made = []
    one = workload(made)
    assert all(same(received(one, number)[2:], made_anew(workload([]), number)) for number in range(4))
    assert len(made) == 4


def test_weights_of_another_model_are_refused_and_nothing_is_moved():
    one = workload([])
    for number in range(3):
        received(one, number)
    before = torch.get_rng_state()
    with pytest.raises(IncompatibleWeightsError, match="another model"):
        received_model(one, {"weight": torch.ones(3)}, CPU)
    assert torch.equal(before, torch.get_rng_state())
