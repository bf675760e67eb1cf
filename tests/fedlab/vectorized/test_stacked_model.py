"""Stacked models beside the models themselves: losses, gradients, buffers, states."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from fedlab.vectorized.draws import NotVectorizable
from fedlab.vectorized.stacked_model import StackedModel


class Tied(nn.Module):
    """Two layers of one weight, a batch norm, a frozen scale, and a buffer that no state holds."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3)
        self.second.weight = self.first.weight
        self.scale = nn.Parameter(torch.tensor(2.0), requires_grad=False)
        self.register_buffer("shift", torch.rand(3), persistent=False)

    def forward(self, x):
        return self.scale * self.second(self.norm(self.first(x))) + self.shift


def loss(model, batch):
    return mse_loss(model(batch["x"]), batch["y"])


def distance(weights, start, extra):
    return sum((extra["pull"] * (weights[name] - start[name] - 1)).square().sum() for name in weights)


def stack(models, penalty=None, extra=()):
    return StackedModel(models[0], [model.state_dict() for model in models], loss, penalty, extra)


@pytest.fixture
def models():
    torch.manual_seed(0)
    found = [Tied() for _ in range(3)]
    for model in found:
        model.shift.copy_(found[0].shift)
    return found


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(3, 8, 3, generator=generator) for name in ("x", "y")}


def row(batch, number):
    return {name: column[number] for name, column in batch.items()}


@pytest.mark.parametrize("penalty", [None, distance])
def test_losses_and_gradients_are_those_of_each_model(models, batch, penalty):
    extra = [{"pull": torch.tensor(float(number))} for number in range(3)]
    stacked = stack(models, penalty, extra)
    found = stacked.losses(batch)
    found.sum().backward()
    for number, model in enumerate(models):
        value = loss(model, row(batch, number))
        if penalty:
            weights = dict(model.named_parameters())
            value = value + penalty(weights, {name: one.detach() for name, one in weights.items()}, extra[number])
        value.backward()
        torch.testing.assert_close(found[number], value)
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                torch.testing.assert_close(stacked.weights[name].grad[number], weight.grad)
            else:
                assert stacked.weights[name].grad is None


def test_buffers_change_as_those_of_each_model(models, batch):
    stacked = stack(models)
    assert torch.equal(stacked.buffers["norm.running_mean"], torch.zeros(3, 3))
    stacked.losses(batch)
    for number, model in enumerate(models):
        assert torch.equal(model.norm.running_mean, torch.zeros(3))  # only read so far
        loss(model, row(batch, number))
        for name, buffer in model.named_buffers():
            torch.testing.assert_close(stacked.buffers[name][number], buffer)


def test_states_are_those_of_the_models_in_their_order(models):
    stacked = stack(models)
    for state, model in zip(stacked.states(stacked.weights, stacked.buffers), models, strict=True):
        own = model.state_dict()
        assert list(state) == list(own) and "second.weight" in state and "shift" not in state
        assert all(torch.equal(state[name], own[name]) for name in own)


def test_the_first_models_go_on_in_the_same_memory(models, batch):
    stacked = stack(models)
    everything = dict(stacked.weights)
    stacked.keep(2)
    assert stacked.losses({name: column[:2] for name, column in batch.items()}).shape == (2,)
    with torch.no_grad():
        stacked.weights["first.weight"].zero_()
    assert not everything["first.weight"][:2].any() and everything["first.weight"][2].any()
    assert stacked.weights["first.weight"].is_leaf and not stacked.weights["scale"].requires_grad


def test_an_error_that_is_not_of_mapping_is_raised_as_it_is(models, batch):
    with pytest.raises(RuntimeError, match="[Ee]xpand|shapes|size"):
        stack(models).losses({**batch, "x": batch["x"][:, :, :2]})


def test_attention_and_switches_are_left_as_they_were(models, batch):
    before = torch.backends.cuda.flash_sdp_enabled(), torch._C._functorch._is_vmap_fallback_enabled()
    with pytest.raises(NotVectorizable, match="branches on values"):
        StackedModel(
            models[0],
            [model.state_dict() for model in models],
            lambda model, batch: batch["x"].sum() if batch["x"].sum() > 0 else None,
        ).losses(batch)
    assert before == (torch.backends.cuda.flash_sdp_enabled(), torch._C._functorch._is_vmap_fallback_enabled())
