"""Every preset and strategy on a GPU: it ends, twice with the same bits; and that the cases are complete."""

from __future__ import annotations

import os

import pytest
import torch

from benchmarks.gpu import right
from fedlab import registry
from fedlab.config.presets import preset_names
from fedlab.errors import ConfigError

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


def test_a_package_that_is_not_here_is_no_failure_and_another_wrong_option_is(monkeypatch):
    def final_weights(case, device):
        raise ConfigError(case)

    monkeypatch.setattr(right, "final_weights", final_weights)
    (row,) = right.check("weights that are not installed", "cpu")
    assert "left out: weights" in row.note and not row.error
    with pytest.raises(ConfigError):
        list(right.check("no such option", "cpu"))


def test_models_that_clients_keep_are_compared_too(monkeypatch):
    class Result:
        def __init__(self, accuracy):
            self.manifest = {"weights_sha256": "same"}
            line = {"clients": {"usps": {"accuracy": accuracy}}, "mean": {}, "server": {}, "score": {}}
            self.rounds = [{**line, "seconds": {"clients": accuracy}}]

    monkeypatch.setattr(right, "cases", lambda: {"any": ({}, {"server.steps": 1, "client.steps": 1})})
    found = []
    for accuracy in (0.5, 0.5, 0.6):
        result = Result(accuracy)
        monkeypatch.setattr(right.fedlab, "run", lambda *_, of=result, **__: of)
        found.append(right.final_weights("any", "cpu")[0])
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("name", ["adacontrast", "fed_adacontrast", "shot", "fed_shot", "source_free"])
def test_clients_adapt_for_a_few_steps(name, monkeypatch):
    config = registry.load_config({}, {**right.strategy_round(name), "device": "cpu"})
    options = {key.partition(".")[2]: value for key, value in config.options().items() if key.startswith(f"{name}.")}
    assert options["batch_size"] <= 32 and (options.get("steps", 3), options.get("epochs", 1.0)) == (3, 1.0)
