"""Long presets by time: one whose learning rate falls gets as many rounds as fit, and the others go on as they are."""

from __future__ import annotations

import pytest

from benchmarks.gpu import long
from benchmarks.gpu.tiny import tiny_round
from fedlab.checks import check_effect
from fedlab.errors import DataError
from fedlab.registry import load_config

MIXER = "mixer-cifar10-central"
QUICK = {"seed": 0, "engine": "inprocess", "device": "cpu", "images.mixer": "tiny", "images.source": "omniglot"}


@pytest.fixture
def overrides():
    return {**long.tiny(MIXER), **QUICK}


@pytest.mark.parametrize("preset", list(long.PRESETS))
def test_all_that_is_set_for_a_long_preset_has_an_effect(preset):
    overrides = long.overrides_of(preset, "cpu")
    check_effect(load_config(preset, overrides), overrides)


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, 3 + 2), (1e6, 300)])
def test_rounds_fit_the_time_and_are_at_most_the_presets_and_longer_than_its_warmup(overrides, seconds, rounds):
    found = long.paced(MIXER, {**overrides, "server.lr_warmup_rounds": 3}, seconds)
    assert found["rounds"] == rounds
    assert found["budget_seconds"] == pytest.approx(max(1.0, seconds), rel=0.01)


def test_without_a_falling_rate_nothing_is_tried_out():
    overrides = {**tiny_round("mixer-digits"), "device": "cpu"}
    assert long.paced("mixer-digits", overrides, 100.0) == {}


def test_data_that_is_not_here_is_a_row_that_says_so(tmp_path):
    (row,) = long.train(MIXER, "cpu", 5.0, str(tmp_path), small=True)
    assert "left out: cifar10 does not ship" in row.note and not row.error
    with pytest.raises(DataError):
        long.paced(MIXER, {"device": "cpu"}, 5.0)
