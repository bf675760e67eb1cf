"""Figures of the tables: one run has no deviation, columns are those of their clients, cases those of their options."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from benchmarks import cells, guard
from benchmarks.privacy import fewer_images
from fedlab.registry import load_config


def test_one_run_has_no_deviation():
    assert (cells.spread([71.3]), cells.gain([-2.0])) == ("71.3", "-2.0")
    assert cells.spread([71.0, 73.0]) == "72.0 ± 1.4"
    assert cells.gain([-2.0, 1.0]) == "-0.5 ± 2.1 (≥ -2.0)"


def test_a_gap_that_may_be_none_has_no_share():
    assert cells.share_of_gap([2.0, 1.0, 3.0], [4.0, 4.1, 3.9]) == "50 %"
    assert cells.share_of_gap([2.0, 1.0, 3.0], [0.5, -0.4, 0.6]) == "-"  # its interval holds 0
    assert cells.share_of_gap([2.0, 1.0, 3.0], [-4.0, -4.1, -3.9]) == "-"  # there is none to close
    assert cells.share_of_gap([2.0], [4.0]) == "-"  # one seed has no interval


def test_a_column_is_of_one_client_whatever_the_order_of_the_runs_answers():
    found = cells.by_client([{"usps": 0.9, "mnist_m": 0.5}, {"mnist_m": 0.5, "usps": 0.9}], ["usps", "mnist_m"])
    assert found.tolist() == [[90.0, 50.0, 70.0]] * 2


def test_a_client_without_a_test_is_no_column_of_another_and_no_mean_of_the_rest():
    runs = [{"usps": 0.9, "mnist_m": 0.5}, {"usps": 0.9}]
    with pytest.raises(SystemExit, match="run 1 of a row has no test of mnist_m after its last round"):
        cells.by_client(runs, ["usps", "mnist_m"])


def test_columns_of_more_images_than_a_client_has_are_said():
    config = load_config({"data.max_examples": 300, "digits.targets": "usps,optdigits"})
    assert fewer_images(config, [300]) == []
    assert fewer_images(config, [300, 1000]) == [
        "usps has 300 images where 1,000 are asked for",
        "optdigits has 300 images where 1,000 are asked for",
    ]


def test_cases_of_other_options_stand_in_no_table_of_the_guard():
    asked = [argparse.Namespace(runs=Path("runs"), overrides=given) for given in ([], ["data.max_examples=100"], [])]
    plain, changed, again = map(guard.folder_of, asked)
    assert plain == again == Path("runs/guard") and changed != plain
