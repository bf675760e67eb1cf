"""The table of workloads."""

from __future__ import annotations

import pytest

from fedlab import registry, workloads
from fedlab.config.schema import Core, build
from fedlab.errors import ConfigError
from fedlab.workloads.digits import Digits


def test_a_table_of_knobs_makes_the_workload_it_names():
    made = workloads.make({"workload": "digits", "digits.targets": "usps", "digits.augment": "false", "seed": 9})
    assert made == Digits(targets="usps", augment=False, seed=9)


def test_the_default_workload_is_in_the_table():
    assert workloads.find(Core().workload).knobs is type(workloads.make({}))


def test_an_unknown_workload_gets_a_suggest():
    with pytest.raises(ConfigError, match="unknown workload 'digit'; did you mean 'digits'"):
        workloads.make({"workload": "digit"})


def test_a_wrong_knob_is_a_sentence_with_its_key():
    with pytest.raises(ConfigError, match=r"knob 'digits.setting'.*got 'orakel'; .*'adaptation', 'oracle' or 'shards'"):
        workloads.make({"digits.setting": "orakel"})
    with pytest.raises(ConfigError, match="domain 'usps' appears twice"):
        workloads.make({"digits.targets": "usps,usps"})


@pytest.mark.parametrize("name", list(registry.WORKLOADS))
def test_every_line_has_a_summary_and_defaults_that_work(name):
    line = workloads.find(name)
    assert line.summary
    assert build(line.knobs, name, {}) == line.knobs()
