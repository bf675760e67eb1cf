"""The cells of a comparison: what each is made of, and what is refused before any runs."""

from __future__ import annotations

import pytest

import toy
from fedlab import launch
from fedlab.comparison.grid import default_baseline, plan_cells, uses_labels
from fedlab.comparison.spec import parse_options, parse_strategies
from fedlab.config.run_options import CheckpointConfig
from fedlab.errors import ConfigError
from tables import put


@pytest.fixture
def cells(tmp_path, monkeypatch):
    put(monkeypatch, "workload", "blobs", toy.SPEC)
    preset = toy.write_preset(tmp_path)

    def make(strategies, seeds=(0,), budget=None, **options):
        grid = parse_options({key.replace("__", "."): value for key, value in options.items()})
        return plan_cells(preset, parse_strategies(strategies), seeds, grid, budget or {})

    return make


def test_strategies_times_values_times_seeds_in_this_order(cells):
    found = cells("source_only,dualadapt", (0, 1), server__steps="2,4")
    assert [(cell.label, cell.options["server.steps"], cell.seed) for cell in found] == [
        (label, steps, seed) for label in ("source_only", "dualadapt") for steps in ("2", "4") for seed in (0, 1)
    ]
    assert len({cell.run for cell in found}) == 8
    assert found[0].run.partition("-")[0] == found[1].run.partition("-")[0]  # seeds of one variant lie side by side


def test_an_option_of_another_strategy_is_left_out_of_a_cell(cells):
    found = cells("source_only,dualadapt", dualadapt__components="1,2")
    assert [(cell.label, cell.options) for cell in found] == [
        ("source_only", {}),
        ("dualadapt", {"dualadapt.components": "1"}),
        ("dualadapt", {"dualadapt.components": "2"}),
    ]


def test_a_single_value_is_no_column(cells):
    (cell,) = cells("dualadapt", rounds="2")
    assert cell.options == {}
    assert cell.config.options()["rounds"] == 2


def test_dualadapt_goes_without_its_control_unless_it_is_asked_for(cells):
    assert cells("dualadapt")[0].config.options()["dualadapt.source_only_twin"] is False
    assert cells("dualadapt:source_only_twin=true")[0].config.options()["dualadapt.source_only_twin"] is True
    assert (
        cells("dualadapt", dualadapt__source_only_twin="true")[0].config.options()["dualadapt.source_only_twin"] is True
    )


def test_clients_get_labels_for_the_strategies_that_train_on_them_alone(cells):
    found = {cell.label: cell.config.options()["blobs.client_labels"] for cell in cells("source_only,oracle,fedavg")}
    assert found == {"source_only": False, "oracle": True, "fedavg": True}
    with pytest.raises(ConfigError, match=r"^oracle: strategy 'oracle' trains on .* own labels"):
        cells("oracle", blobs__client_labels="false")


def test_what_runs_are_given_and_what_names_them(cells):
    one, other = cells("source_only")[0], cells("source_only", checkpoint__keep="5")[0]
    assert (one.config.run.threads, one.config.checkpoint) == (1, CheckpointConfig(keep=1, keep_initial=True))
    assert one.run == other.run  # no result depends on it
    assert cells("source_only", threads="2")[0].run != one.run
    assert cells("A=source_only")[0].run == one.run  # a label is only a word
    assert cells("source_only", budget={"budget_bytes": 5e6})[0].run != one.run


def test_an_option_of_steps_that_a_strategy_does_not_take_is_left_out_of_its_cells(cells):
    found = cells("source_only,dualadapt", client__lr_warmup_rounds="0,1")
    assert [(cell.label, cell.config.client.lr_warmup_rounds) for cell in found] == [
        ("source_only", 0),
        ("dualadapt", 0),
        ("dualadapt", 1),
    ]


def test_an_ablation_is_its_strategy_with_options(cells):
    named, spelled = cells("dualadapt_no_weights,dualadapt:client_weights=false:server_weights=false")
    assert named.strategy == "dualadapt"
    assert named.run == spelled.run


@pytest.mark.parametrize(
    ("strategies", "options", "sentence"),
    [
        ("source_only,dualadapt:components=0", {}, r"^dualadapt: option 'dualadapt.components'"),
        (
            "source_only",
            {"dualadapt__components": "1,2"},
            "'dualadapt.components' has no effect on any of source_only; it has an effect with strategy=dualadapt$",
        ),
        ("dualadapt:components=1", {"dualadapt__components": "2"}, "is set by variant .* and for the whole comparison"),
        ("dualadapt_one_component", {"dualadapt__components": "2"}, "is set by variant 'dualadapt_one_component'"),
        (
            "source_only",
            {"blobs__domains": "a,b", "data__num_clients": "3"},
            "(?s)3, but workload.*write blobs.domains='a|b'",
        ),
        ("adabn", {"blobs__headless": "true"}, "adabn: adabn needs a model with batch norms"),
        ("adabn", {"blobs__headless": "true,false"}, "adabn blobs.headless=true: adabn needs"),
        ("source_only:componets=5", {"blobs__domains": "a,b"}, r"^source_only: unknown option 'componets'[^\n]*$"),
    ],
)
def test_what_cannot_run_is_refused_with_its_cell(cells, strategies, options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        cells(strategies, **options)


def test_the_lower_bound_is_the_usual_baseline(cells):
    assert default_baseline(cells("dualadapt,low=source_only")) == "low"
    assert default_baseline(cells("dualadapt,adabn")) == "dualadapt"


def test_a_cell_is_what_a_run_of_its_options_would_be(cells, tmp_path):
    (cell,) = cells("dualadapt_no_mixup", (3,))
    given = {
        "threads": 1,
        "checkpoint.keep": 1,
        "checkpoint.keep_initial": True,
        "dualadapt.source_only_twin": False,
        "seed": 3,
    }
    alone = launch.prepare(str(tmp_path / "toy.toml"), {"strategy": "dualadapt_no_mixup", **given})
    assert {**cell.config.options(), "name": ""} == {**alone.options(), "name": ""}


def test_variants_that_learn_from_labels_are_told_apart_where_others_do_not(cells):
    assert uses_labels(cells("source_only,fedavg,A=oracle,dualadapt")) == ["fedavg", "A"]
    assert uses_labels(cells("fedavg,oracle")) == uses_labels(cells("source_only,dualadapt")) == []
