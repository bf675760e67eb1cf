"""Every preset and strategy on a GPU: it ends, twice with the same bits; and that the cases are complete."""

from __future__ import annotations

import os

import pytest
import torch

from benchmarks.gpu import right
from fedlab import registry
from fedlab.config.presets import preset_names

FULL = os.environ.get("FEDLAB_DATA", "")  # read before the fixture that hides it


def test_all_presets_and_strategies_are_cases():
    assert set(right.cases()) == {f"preset {name}" for name in preset_names()} | {
        f"strategy {name}" for name in registry.STRATEGIES
    }


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("case", sorted(right.cases()))
def test_a_case_ends_twice_with_the_same_bits_on_a_gpu(case, monkeypatch):
    if FULL:
        monkeypatch.setenv("FEDLAB_DATA", FULL)
    (row,) = right.check(case, "cuda")
    assert not row.error
    if not row.tally:
        pytest.skip(row.note)


def test_a_case_says_which_bits_differ(monkeypatch):
    answers = iter([("aa", 1.0), ("bb", 1.0)])
    monkeypatch.setattr(right, "final_weights", lambda case, device: next(answers))
    (row,) = right.check("preset any", "cpu")
    assert "other bits: aa and bb" in row.error
