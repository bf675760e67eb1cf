"""Rules on models that are rows of a stack beside the same models by themselves."""

from __future__ import annotations

import weakref
from dataclasses import replace

import pytest
import torch

from fedlab.comm.tensors import RowTensors, tensor_record, tensors_on_demand
from fedlab.vectorized.stacked_states import StackedStates


def stacked(updates):
    """The updates as rows of one stack, whose matrices lie as those of linear layers that were trained at once."""
    arrays = {name: torch.stack([one.arrays[name] for one in updates]) for name in updates[0].arrays}
    arrays = {name: one.mT.contiguous().mT if one.dim() == 3 else one for name, one in arrays.items()}
    records = map(tensor_record, StackedStates(arrays))
    found = [replace(one, arrays=tensors_on_demand(record)) for one, record in zip(updates, records, strict=True)]
    assert all(isinstance(one.arrays, RowTensors) for one in found)
    return found


@pytest.mark.parametrize("name", ["fedavg", "qfedavg", "fedmedian"])
def test_rows_have_the_bits_of_models_by_themselves(make, start, models, name):
    ours, theirs = (make(name).aggregate(start, updates, 1) for updates in (stacked(models(1)), models(1)))
    assert all(torch.equal(ours[key], theirs[key]) and ours[key].is_contiguous() for key in theirs)


@pytest.mark.parametrize("at_once", [False, True])
def test_rows_of_several_stacks_come_in_any_order_and_beside_other_models(make, start, models, at_once, monkeypatch):
    monkeypatch.setattr(StackedStates, "is_summed_at_once", at_once)
    alone = models(1)
    one, other = stacked([alone[0], alone[2]]), stacked([alone[1], alone[4]])
    mixed = [one[0], other[0], one[1], alone[3]]  # the other row of the second stack was refused
    ours, theirs = (make("fedavg").aggregate(start, updates, 1) for updates in (mixed, alone[:4]))
    for key, wanted in theirs.items():
        torch.testing.assert_close(ours[key], wanted)
        assert ours[key].is_contiguous()


def test_a_rule_that_keeps_updates_keeps_no_stack(make, start, models):
    rule, updates = make("fedmedian"), stacked(models(1))
    stack = weakref.ref(updates[0].arrays.of)
    rule.begin(start)
    while updates:
        rule.add(updates.pop(0), 1.0)
    assert stack() is None and rule.finish(1, 5.0).keys() == start.keys()
