"""Long presets by time: one whose learning rate falls gets as many rounds as fit, and the others go on as they are."""

from __future__ import annotations

import pytest

from benchmarks.gpu import long
from benchmarks.gpu.tiny import tiny_round
from fedlab.checks import check_effect
from fedlab.errors import ConfigError, DataError
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


def test_rounds_of_a_run_of_several_calls_fit_into_all_of_them(overrides):
    found = long.paced(MIXER, overrides, 30.0, planned=1e6)
    assert found["rounds"] == 300 and found["budget_seconds"] <= 30


def test_a_long_round_is_tried_out_in_a_part(overrides, monkeypatch):
    tried = []

    class Trial:
        rounds = [{"seconds": {"server": 1.0, "clients": 0.5, "evaluate": 9.0}}] * 4

    def run(preset, runs, overrides):
        tried.append(overrides)
        return Trial()

    monkeypatch.setattr(long.fedlab, "run", run)
    found = long.paced(MIXER, {**overrides, "server.steps": 1000}, 1e5, planned=1050.0 / (1 - long.SPARE))
    assert tried[0]["server.steps"] == 100 and tried[0]["rounds"] == 3
    assert found["rounds"] == 300  # of 95,000 s
    found = long.paced(MIXER, {**overrides, "server.steps": 1000}, 1050.5 / (1 - long.SPARE))
    assert found["rounds"] == 100  # of 10.5 s each: ten times the server's second, and the clients' half


def test_a_run_goes_on_for_its_time_where_another_call_left_it(tmp_path, monkeypatch):
    monkeypatch.setattr(long, "CLOSING", 0.0)
    monkeypatch.setattr(long, "tiny", lambda preset: {**tiny_round(preset), **QUICK, "rounds": 300})
    monkeypatch.setattr(long, "falls_with_rounds", lambda config: False)
    first, *_ = long.train(MIXER, "cpu", 1.0, str(tmp_path), small=True)
    second, *_ = long.train(MIXER, "cpu", 1.0, str(tmp_path), small=True)
    assert 0 < first.value < second.value
    with pytest.raises(ConfigError, match=r"server\.learning_rate"):
        list(long.train(MIXER, "cpu", 1.0, str(tmp_path), True, {"server.learning_rate": 0.5}))


def test_a_run_reads_its_data_where_the_machine_has_it(monkeypatch):
    monkeypatch.setenv("FEDLAB_DATA", "/here")
    assert long.moved("cuda") == {"device": "cuda", "data.root": "/here"}
    monkeypatch.delenv("FEDLAB_DATA")
    assert long.moved("cpu") == {"device": "cpu"}


def test_without_a_falling_rate_nothing_is_tried_out():
    overrides = {**tiny_round("mixer-digits"), "device": "cpu"}
    assert long.paced("mixer-digits", overrides, 100.0) == {}


def test_data_that_is_not_here_is_a_row_that_says_so(tmp_path):
    (row,) = long.train(MIXER, "cpu", 5.0, str(tmp_path), small=True)
    assert "left out: cifar10 does not ship" in row.note and not row.error
    with pytest.raises(DataError):
        long.paced(MIXER, {"device": "cpu"}, 5.0)
