"""Recurrent layers: torch's to the bit, and the same numbers where vmap maps them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from fedlab.models.mapped import is_mapped
from fedlab.models.recurrent import GRU, GRUCell, LSTMCell

BATCH, WIDTH, HIDDEN, MODELS = 5, 3, 4, 2


def inputs(kind):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(MODELS, BATCH, *([6] if kind is GRU else []), WIDTH, generator=generator)
    state = torch.randn(MODELS, *([1] if kind is GRU else []), BATCH, HIDDEN, generator=generator)
    return x, (state, state.flip(1)) if kind is LSTMCell else state


def outputs(found):
    return found if isinstance(found, tuple) else (found,)


def of(inputs, number):
    return tuple(one[number] for one in inputs) if isinstance(inputs, tuple) else inputs[number]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (GRUCell(WIDTH, HIDDEN), nn.GRUCell(WIDTH, HIDDEN)),
        (LSTMCell(WIDTH, HIDDEN), nn.LSTMCell(WIDTH, HIDDEN)),
        (GRU(WIDTH, HIDDEN), nn.GRU(WIDTH, HIDDEN, batch_first=True)),
    ],
)
def test_alone_it_is_torchs_and_mapped_it_has_the_same_numbers_and_gradients(ours, theirs):
    x, state = inputs(type(ours))
    models = [type(ours)(WIDTH, HIDDEN) for _ in range(MODELS)]
    weights, buffers = stack_module_state(models)

    def mapped(weights, x, state):
        return functional_call(ours, (weights, buffers), (x, state))

    together = outputs(vmap(mapped)(weights, x, state))
    sum(one.square().sum() for one in together).backward()
    for number, model in enumerate(models):
        theirs.load_state_dict(model.state_dict())
        theirs.zero_grad()
        found, expected = outputs(model(x[number], of(state, number))), outputs(theirs(x[number], of(state, number)))
        sum(one.square().sum() for one in expected).backward()
        for one, other, stacked in zip(found, expected, together, strict=True):
            assert torch.equal(one, other)
            torch.testing.assert_close(stacked[number], other)
        for name, weight in theirs.named_parameters():
            torch.testing.assert_close(weights[name].grad[number], weight.grad, rtol=1e-4, atol=1e-5)


def test_a_gru_begins_with_zeros():
    layer = GRU(WIDTH, HIDDEN)
    x, _ = inputs(GRU)
    states, last = vmap(lambda weights, x: functional_call(layer, weights, (x,)))(stack_module_state([layer] * 2)[0], x)
    torch.testing.assert_close(states[1], layer(x[1])[0])
    torch.testing.assert_close(last, states[:, None, :, -1])


def test_a_tensor_is_mapped_inside_vmap_alone():
    seen = []

    def look(x):
        seen.append(is_mapped(x))
        return x

    vmap(look)(torch.zeros(2, 3))
    assert seen == [True] and not is_mapped(torch.zeros(2))
