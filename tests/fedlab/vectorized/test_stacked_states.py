"""Stacked states beside the states one by one: norms, signs, sums in pieces, rows of their own."""

from __future__ import annotations

import math

import pytest
import torch

from fedlab.vectorized import stacked_states
from fedlab.vectorized.stacked_states import StackedStates


@pytest.fixture
def states():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 4, 3, generator=generator).mT  # as the weights of a linear layer lie
    variance = torch.rand(5, 3, generator=generator)
    return StackedStates({"weight": weight, "running_var": variance, "count": torch.arange(5)})


def test_a_state_is_a_row_that_is_made_when_it_is_read(states):
    assert len(states) == 5 and len(list(states)) == 5 and states[-1].row == 4
    one = states[2]
    assert list(one) == ["weight", "running_var", "count"] and len(one) == 3 and "weight" in one
    assert one["weight"].is_contiguous() and torch.equal(one["weight"], states.arrays["weight"][2])
    assert states.kinds["weight"] == (torch.float32, torch.Size([3, 4])) and states.kinds["count"][1] == torch.Size([])


def test_a_copy_on_the_host_does_not_keep_the_other_rows(states):
    row = states.on_host("weight", 1)
    assert torch.equal(row, states.arrays["weight"][1])
    assert row.untyped_storage().nbytes() == row.nbytes and row.is_contiguous()


@pytest.mark.parametrize("piece", [1, 100, 2**20])
def test_norms_are_those_of_all_floats_of_a_model(states, monkeypatch, piece):
    monkeypatch.setattr(stacked_states, "PIECE_BYTES", piece)
    for row, norm in enumerate(states.norms):
        floats = [states[row]["weight"].double(), states[row]["running_var"].double().abs().sqrt()]
        assert norm == pytest.approx(math.hypot(*(float(one.norm()) for one in floats)), rel=1e-7)


def test_states_without_floats_have_the_norm_0():
    assert StackedStates({"count": torch.arange(2)}).norms == [0.0, 0.0]


def test_a_value_below_0_is_its_models_own(states):
    states.arrays["running_var"][3, 1] = -0.1
    assert [states.is_negative("running_var", row) for row in range(5)] == [False, False, False, True, False]
    assert not states.is_negative("count", 0)


@pytest.mark.parametrize("piece", [1, 100, 2**20])
def test_weighted_sums_are_those_of_the_chosen_rows(states, monkeypatch, piece):
    monkeypatch.setattr(stacked_states, "PIECE_BYTES", piece)
    found = states.weighted_sums([0, 3, 4], [2.0, 1.0, 0.5], ["weight", "running_var"])
    assert list(found) == ["weight", "running_var"]
    for name, total in found.items():
        array = states.arrays[name]
        torch.testing.assert_close(total, 2 * array[0] + array[3] + 0.5 * array[4])


@pytest.mark.parametrize(("dtype", "weight"), [(torch.bfloat16, 1001.0), (torch.float64, 2.0**24 + 1)])
def test_weights_are_not_rounded_to_the_type_of_a_small_float(dtype, weight):
    states = StackedStates({"w": torch.tensor([[1.0], [-1.0]], dtype=dtype)})
    total = states.weighted_sums([0, 1], [weight, weight - 1], ["w"])["w"]
    assert total.dtype == dtype and total.item() == 1.0
