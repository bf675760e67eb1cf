"""The table of workloads."""

from __future__ import annotations

import pytest

from configs import make, workload
from fedlab import registry
from fedlab.config.schema import RunConfig
from fedlab.errors import ConfigError
from fedlab.workloads.digits import Digits


def test_options_make_the_workload_that_they_name():
    made = workload("digits", **{"digits.targets": "usps", "digits.augment": "false", "data.alpha": "0.1", "seed": 9})
    assert made == make(Digits, targets="usps", augment=False, alpha=0.1, seed=9)


def test_the_default_workload_is_in_the_table():
    assert registry.find("workload", RunConfig().workload).spec.workload is type(registry.load_config({}).workload)


def test_an_unknown_workload_gets_a_near_match():
    with pytest.raises(ConfigError, match="unknown workload 'digit'; did you mean 'digits'"):
        workload("digit")


def test_a_wrong_value_is_a_sentence_with_its_key():
    with pytest.raises(ConfigError, match=r"option 'digits.setting'.*got 'orakel'; .*'domains' or 'shards'"):
        workload("digits", **{"digits.setting": "orakel"})
    with pytest.raises(ConfigError, match="domain 'usps' appears twice"):
        workload("digits", **{"digits.targets": "usps,usps"})


@pytest.mark.parametrize("name", list(registry.WORKLOADS))
def test_every_line_has_a_summary_and_defaults_that_work(name):
    assert registry.WORKLOADS[name].summary
    assert workload(name) == make(registry.find("workload", name).spec.workload)
