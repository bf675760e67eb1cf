"""How a comparison is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedlab.comparison.spec import as_options, join_variants, parse_budget, parse_options, parse_seeds, parse_strategies
from fedlab.errors import ConfigError


def test_strategies_with_options_and_labels():
    plain, own, named = parse_strategies("source_only, dualadapt:components=5:client.steps=40,B=oracle:rounds=3")
    assert (plain.label, plain.name, plain.options) == ("source_only", "source_only", {})
    assert own.label == "dualadapt"  # what stands behind it tells it from no other
    assert own.options == {"dualadapt.components": "5", "client.steps": "40"}
    assert (named.label, named.name, named.options) == ("B", "oracle", {"rounds": "3"})
    assert parse_strategies(["a=source_only", "dualadapt_no_mixup"])[1].name == "dualadapt_no_mixup"


def test_two_of_one_strategy_are_told_apart_by_their_options():
    labels = [variant.label for variant in parse_strategies("dualadapt,dualadapt:components=5,oracle:rounds=3")]
    assert labels == ["dualadapt", "dualadapt:components=5", "oracle"]


def test_a_bar_stands_between_variants_whose_options_hold_commas():
    parts = ["fedavg", "A=dualadapt:digits.targets=usps,mnist_m"]
    assert join_variants(parts) == "fedavg|A=dualadapt:digits.targets=usps,mnist_m"
    assert join_variants(["a", "b"]) == "a,b"
    for asked in (parts, parts[1:]):
        assert parse_strategies(join_variants(asked)) == parse_strategies(asked)


def test_an_option_behind_an_ablation_is_its_strategys():
    assert parse_strategies("dualadapt_no_mixup:components=5")[0].options == {"dualadapt.components": "5"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "no strategy to compare; write --strategies"),
        ("dualadap", "did you mean 'dualadapt'"),
        ("dualadapt_no_mixp", "did you mean 'dualadapt_no_mixup'"),
        ("dualadapt,dualadapt", "two variants are called 'dualadapt'; give one a name of its own: LABEL=dualadapt"),
        ("dualadapt:components", "'components' of variant 'dualadapt:components' is no option"),
    ],
)
def test_strategies_that_make_no_sense_are_refused(text, sentence):
    with pytest.raises(ConfigError, match=sentence):
        parse_strategies(text)


def test_seeds_are_a_number_or_a_list():
    assert parse_seeds("3") == parse_seeds(3) == parse_seeds([0, 1, 2]) == [0, 1, 2]
    assert parse_seeds("7,2") == [7, 2]
    assert parse_seeds("4,") == [4]


@pytest.mark.parametrize("text", ["", "0", "a", "1,b", "1,1", "-1", "\u00b2", [-1], 1.5, None])
def test_seeds_that_make_no_sense_are_refused(text):
    with pytest.raises(ConfigError, match="write how many"):
        parse_seeds(text)


def test_a_comma_stands_between_values_except_in_free_text():
    found = parse_options(
        {
            "server.steps": "24,48",
            "dualadapt.mixup": "average,off",
            "dualadapt.client_weights": "true,false",
            "digits.targets": "usps,mnist_m",
            "digits.source": "mnist|svhn",
            "client.steps": "5|6",
            "rounds": 3,
            "server.batch_size": [16, 32],
        }
    )
    assert found == {
        "server.steps": ["24", "48"],
        "dualadapt.mixup": ["average", "off"],
        "dualadapt.client_weights": ["true", "false"],
        "digits.targets": ["usps,mnist_m"],
        "digits.source": ["mnist", "svhn"],
        "client.steps": ["5", "6"],
        "rounds": [3],
        "server.batch_size": [16, 32],
    }


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"server.step": "1"}, "did you mean 'server.steps'"),
        ({"strategy": "dualadapt"}, "option 'strategy' is set by --strategies"),
        ({"seed": "1,2"}, "option 'seed' is set by --seeds"),
        ({"budget_bytes": "5"}, "is set by --budget bytes=5MB"),
        ({"server.steps": "5,5"}, "gives no value, or one of them twice"),
        ({"server.steps": []}, "gives no value"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        parse_options(options)


def test_budgets_have_units():
    assert parse_budget(["bytes=5MB", "seconds=2min", "rounds=3"]) == {"bytes": 5e6, "seconds": 120.0, "rounds": 3.0}
    assert parse_budget(["bytes=250kB"]) == {"bytes": 250e3}
    assert as_options({"rounds": 3.0, "bytes": 5e6}) == {"rounds": 3, "budget_bytes": 5e6}
    assert type(as_options({"rounds": 3.0})["rounds"]) is int


@pytest.mark.parametrize(
    "text", ["bytes", "bytes=", "bytes=-1", "bytes=0", "rounds=1.5", "time=60", "seconds=5MB", "bytes=5min", "bytes=x"]
)
def test_a_budget_that_makes_no_sense_is_refused(text):
    with pytest.raises(ConfigError, match="is no budget; write rounds=3, bytes=5MB"):
        parse_budget([text])
    with pytest.raises(ConfigError, match="is no budget"):
        parse_budget(["rounds=1", "rounds=2"])


@pytest.mark.parametrize("budget", [{"time": 60}, {"rounds": 2.5}, {"bytes": -1}, {"seconds": "60"}, {"rounds": None}])
def test_a_budget_from_python_is_refused_in_the_same_way(budget):
    with pytest.raises(ConfigError, match="is no budget; write rounds=3, bytes=5MB"):
        as_options(budget)


def test_values_from_python_may_be_numpys_or_paths():
    found = parse_options({"server.steps": np.int64(24), "client.steps": np.arange(2), "data.root": Path("there")})
    assert found == {"server.steps": [24], "client.steps": [0, 1], "data.root": ["there"]}
    assert parse_seeds(np.int64(2)) == [0, 1] and parse_seeds(np.array([3, 1])) == [3, 1]


def test_an_import_path_is_a_name():
    path = "fedlab.strategies.source_only:SPEC"
    plain, named = parse_strategies(f"{path},mine={path}:client.steps=3")
    assert (plain.label, plain.name, plain.options) == ("source_only", path, {})
    assert (named.label, named.name, named.options) == ("mine", path, {"client.steps": "3"})
