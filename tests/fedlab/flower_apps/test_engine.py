"""The engine of an app's clients, as it is written among the overrides of its run config."""

from __future__ import annotations

import pytest

from fedlab.errors import ConfigError
from fedlab.flower_apps.engine import AppEngine


def test_the_engine_and_its_options_are_no_entries_of_the_run_config():
    engine, rest = AppEngine.split({"engine": "ray", "ray.cpus": "0.5", "lr": "1"}, {"lr": 0.1})
    assert (engine.name, engine.parsed().cpus, rest) == ("ray", 0.5, {"lr": "1"})
    assert engine.written() == ["engine=ray", "ray.cpus=0.5"] and AppEngine().written() == []


def test_an_app_keeps_entries_of_its_own_that_are_called_so():
    engine, rest = AppEngine.split({"engine": "diesel"}, {"engine": "petrol"})
    assert engine == AppEngine() and rest == {"engine": "diesel"}


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"engine": "grpc"}, "carries fedlab's own apps only.*engine=inprocess or pool or ray"),
        ({"engine": "rya"}, "did you mean 'ray'"),
        ({"engine": "ray", "ray.adress": "a:1"}, "has no option 'ray.adress'; did you mean 'ray.address'"),
        ({"engine": "ray", "ray.cpus": "none"}, "ray.cpus"),
        ({"engine": "ray", "ray.cpus": [1, 2]}, "one for all runs"),
    ],
)
def test_bad_input_is_a_sentence(overrides, sentence):
    with pytest.raises(ConfigError, match=sentence):
        AppEngine.split(overrides, {})
