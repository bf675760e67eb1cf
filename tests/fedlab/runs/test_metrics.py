"""Declared metrics: patterns, order, roles, and the way into and out of a manifest."""

from __future__ import annotations

import json
import math

import pytest

from fedlab.metrics import FRACTION, Metric, Phase
from fedlab.registry import find
from fedlab.runs.metrics import MetricTable, mean_over

TABLE = MetricTable.declared(
    find("strategy", "dualadapt").spec, find("workload", "digits").spec, find("workload", "camvid").spec
)
SAMPLES = MetricTable.declared(find("workload", "molecules").spec, find("workload", "generation").spec)
EPISODES = MetricTable.declared(find("workload", "fewshot").spec)


def test_names_are_sorted_for_a_reader():
    names = ["zeal", "accuracy_average", "loss", "accuracy_global", "accuracy_source_only", "num-examples", "accuracy"]
    assert TABLE.sorted(names) == [
        "accuracy",
        "accuracy_source_only",
        "accuracy_global",
        "accuracy_average",
        "zeal",
        "loss",
    ]
    assert EPISODES.sorted(["accuracy_20-shot", "accuracy_5-shot"]) == ["accuracy_5-shot", "accuracy_20-shot"]


@pytest.mark.parametrize(
    ("table", "names", "primary"),
    [
        (TABLE, ["accuracy_source_only", "accuracy_average", "accuracy_last", "loss"], "accuracy_average"),
        (TABLE, ["accuracy", "loss"], "accuracy"),
        (TABLE, ["accuracy_source_only", "loss"], "accuracy_source_only"),
        (EPISODES, ["accuracy_5-shot", "accuracy_1-shot", "interval_5-shot"], "accuracy_5-shot"),
        (TABLE, ["fid", "loss"], "fid"),
        (TABLE, ["num-examples", "loss"], "loss"),
        (TABLE, [], ""),
    ],
)
def test_the_primary_metric_is_the_best_informed_of_the_first_group(table, names, primary):
    assert table.primary_metric(names) == primary


def test_directions_and_primary_scores():
    more, less = ["validity", "recall"], ["loss", "nll", "frechet", "wasserstein_logp"]
    assert {SAMPLES.direction(name) for name in more} == {1} and {SAMPLES.direction(name) for name in less} == {-1}
    assert SAMPLES.direction("psnr") == 0
    score = {"samples": 9.0, "validity": 0.5, "frechet": 2.0, "frechet_real": 1.0, "wasserstein_logp": 1.0}
    assert SAMPLES.primary_scores(score) == ["validity", "frechet"]
    assert SAMPLES.reference(score, "frechet") == "frechet_real" and SAMPLES.reference(score, "validity") == ""


def test_titles_and_values_for_people():
    assert (TABLE.title("accuracy_source_only"), TABLE.group("accuracy_source_only")) == ("source only", "accuracy")
    assert (TABLE.variant("accuracy_source_only"), TABLE.variant("accuracy")) == ("source_only", "")
    assert TABLE.format("accuracy_local", 0.98765) == "98.8 %"
    assert TABLE.format("loss", 0.123456) == "0.1235"
    assert EPISODES.title("accuracy_5-shot") == "5-shot"
    assert (EPISODES.title("interval_5-shot"), EPISODES.format("interval_5-shot", 0.0084)) == (
        "interval 5-shot",
        "± 0.8",
    )
    assert [TABLE.heading(name) for name in ("accuracy", "loss", "psnr")] == ["accuracy", "loss ↓", "psnr"]


def test_short_lines_have_results_and_auxiliary_numbers_only_alone():
    names = EPISODES.sorted(["accuracy_5-shot", "interval_5-shot", "loss"])
    assert EPISODES.shown(names) == ["accuracy_5-shot", "interval_5-shot"]
    assert EPISODES.shown(names, margins=False) == ["accuracy_5-shot"]
    assert EPISODES.shown(["loss"]) == ["loss"]


def test_a_table_survives_the_manifest_and_a_field_of_another_version_is_left_out():
    manifest = json.loads(json.dumps(TABLE.to_manifest()))
    assert MetricTable.from_manifest(manifest) == TABLE
    manifest["metrics"][0]["color"] = "red"
    assert MetricTable.from_manifest(manifest) == TABLE


def test_the_first_declaration_of_a_name_counts():
    mine = MetricTable((Metric("loss", "my loss"),), (Phase("clients", "clients adapt"),))
    merged = MetricTable.merged([mine, MetricTable.declared()])
    assert merged.title("loss") == "my loss" and merged.phase_title("clients") == "clients adapt"
    assert merged.phase_title("evaluate") == "clients test" and merged.phase_title("unheard of") == "unheard of"
    assert (
        MetricTable.declared(find("strategy", "dualadapt").spec).phase_title("pretrain") == "pre-training on the source"
    )


def test_a_variant_of_a_number_that_is_no_fraction_keeps_both_titles():
    table = MetricTable(
        (Metric("energy", unit="kcal"), Metric("*_average", "average"), Metric("bond_*", unit=FRACTION))
    )
    assert table.title("energy_average") == "energy average" and table.format("energy_average", 2.0) == "2 kcal"
    assert table.format("bond_single", 0.5) == "50.0 %"


def test_bold_is_the_best_as_it_is_written():
    table = MetricTable(
        (Metric("accuracy", unit=FRACTION, higher_is_better=True), Metric("loss", higher_is_better=False))
    )
    assert table.best_as_shown("accuracy", [0.80001, 0.8, 0.7]) == {"80.0 %"}
    assert table.best_as_shown("loss", [2.0, 1.0, math.nan]) == {"1"}
    assert table.best_as_shown("psnr", [2.0, 1.0]) == set() == table.best_as_shown("accuracy", [0.8, math.nan])


def test_a_mean_is_over_the_clients_that_reported_and_each_counts_once():
    clients = {
        "a": {"accuracy": 0.5, "accuracy_local": 0.4, "num-examples": 1000.0},
        "b": {"accuracy": 1.0, "num-examples": 10.0},
    }
    found = mean_over(clients, without=("num-examples",))
    assert found == {"accuracy": pytest.approx(0.75), "accuracy_local": pytest.approx(0.4)}


def test_no_client_no_mean():
    assert mean_over({}) == {}
