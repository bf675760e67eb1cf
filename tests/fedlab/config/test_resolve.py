"""From a preset and overrides to one typed configuration: precedence, and what is refused."""

from __future__ import annotations

import pytest
from pydantic import Field
from pydantic.dataclasses import dataclass

import toy
from fedlab.config.renamed import RENAMED
from fedlab.config.resolve import active_sections, with_options
from fedlab.config.schema import COMMON_SECTIONS, NoOptions, Plugin
from fedlab.config.sections import options
from fedlab.engines.spec import EngineSpec
from fedlab.errors import ConfigError
from fedlab.registry import all_sections, load_config
from tables import put


@pytest.fixture(autouse=True)
def _toy_workload(monkeypatch):
    put(monkeypatch, "workload", "blobs", toy.SPEC)


CHOSEN = {"workload": "blobs", "strategy": "source_only"}

# --- precedence ---


def test_defaults_then_preset_then_overrides():
    config = load_config({**CHOSEN, "rounds": 2, "blobs.broken": 3}, {"blobs.broken": "4", "seed": "8"})
    assert (config.run.rounds, config.workload.broken, config.run.seed) == (2, 4, 8)
    assert config.workload.domains == "near,far"


def test_a_mapping_may_be_nested_and_described():
    nested = {"description": "as in TOML", **CHOSEN, "server": {"steps": 3}, "blobs": {"domains": "a"}}
    assert load_config(nested) == load_config({**CHOSEN, "server.steps": 3, "blobs.domains": "a"})


def test_resolving_again_changes_nothing():
    config = load_config({**CHOSEN, "rounds": "2", "blobs.linear": "yes"})
    assert load_config(config.options()) == config


def test_options_can_be_changed_and_what_is_in_use_stays():
    config = load_config(CHOSEN, {}, client_folder="here")
    changed = with_options(config, {"seed": 4, "blobs.domains": "a"})
    assert (changed.run.seed, changed.data.seed, changed.workload.clients) == (4, 4, ("a",))
    assert (changed.data.client_folder, changed.plugins) == ("here", config.plugins)
    assert config.run.seed == 0
    with pytest.raises(ConfigError, match="option 'seed'.*got -1"):
        with_options(config, {"seed": -1})


@pytest.mark.parametrize(("overrides", "name"), [({}, "lunch"), ({"name": ""}, "lunch"), ({"name": "tea"}, "tea")])
def test_an_empty_name_is_the_presets(overrides, name):
    assert load_config({"name": "lunch"}, overrides).run.name == name


def test_a_strategy_that_is_nothing_but_a_rule_is_configured_once():
    config = load_config({"strategy": "fedadam", "fedadam.learning_rate": 0.3})
    assert config.aggregation == config.strategy
    assert config.aggregation.learning_rate == 0.3
    assert load_config({"strategy": "source_only"}).aggregation is None


# --- what is refused ---


@pytest.mark.parametrize("where", ["preset", "override"])
@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("roundz", "did you mean 'rounds'"),
        ("blobs.domain", "did you mean 'blobs.domains'"),
        ("components", "did you mean 'dualadapt.components'"),
        ("blobs.steps", "did you mean 'server.steps' or 'client.steps'"),
        ("data.client_folder", "unknown option 'data.client_folder'"),
    ],
)
def test_an_unknown_option_gets_a_near_match(where, key, sentence):
    preset, overrides = ({**CHOSEN, key: 1}, {}) if where == "preset" else (CHOSEN, {key: 1})
    with pytest.raises(ConfigError, match=rf"unknown option '{key}'; .*`fedlab list options`") as caught:
        load_config(preset, overrides)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("clients", "data.num_clients"),
        ("wire", "comm.compression"),
        ("data_root", "data.root"),
        ("server.batch", "server.batch_size"),
        ("client.anneal", "client.final_lr_fraction"),
        ("digits.limit", "data.max_examples"),
        ("blobs.labelled", "blobs.client_labels"),
        ("camvid.parts", "data.clients_per_domain"),
        ("dualadapt.control", "dualadapt.source_only_twin"),
        ("multikrum.malicious", "multikrum.num_malicious"),
        ("fednova.local_epochs", "client.epochs"),
        ("fednova.momentum", "client.momentum"),
    ],
)
def test_an_old_name_gets_its_new_one(old, new):
    with pytest.raises(ConfigError, match=f"unknown option '{old}'; it is called '{new}' now"):
        load_config(CHOSEN, {old: 1})


def test_the_table_of_old_names_leads_to_options_that_exist():
    known = options(all_sections())
    for old, new in RENAMED.items():
        if old.startswith("*."):
            names = [new.replace("*", section) for section in all_sections()]
            assert any(name in known for name in names), old
            assert old.replace("*", "server") not in known
        else:
            assert new in known and old not in known, old


def test_an_option_without_effect_is_refused_as_an_override_and_left_out_of_a_preset():
    used = "workload 'blobs', strategy 'source_only', engine 'local'"
    for key in ("fedprox.mu", "digits.targets", "ray.cpus", "fedadam.learning_rate"):
        with pytest.raises(ConfigError, match=f"option '{key}' has no effect in this run, which uses {used}"):
            load_config(CHOSEN, {key: 1})
        assert key not in load_config({**CHOSEN, key: 1}).options()


def test_an_option_of_what_a_workload_was_made_from_is_named_as_it_is_here():
    """A subclass of a workload that ships has its options under a name of its own."""
    with pytest.raises(ConfigError, match="'digits.client_labels' has no.*; 'blobs.client_labels' is in use here"):
        load_config(CHOSEN, {"digits.client_labels": True})


def test_a_rule_that_is_not_chosen_has_no_effect():
    chosen = {"strategy": "self_training", "self_training.aggregation": "fedadam"}
    assert load_config(chosen, {"fedadam.learning_rate": 0.1}).aggregation.learning_rate == 0.1
    with pytest.raises(ConfigError, match="'fedyogi.learning_rate' has no effect.*aggregation 'fedadam'"):
        load_config(chosen, {"fedyogi.learning_rate": 0.1})


def test_a_bad_value_is_refused_wherever_it_stands():
    for preset, overrides in (({**CHOSEN, "blobs.broken": "x"}, {}), (CHOSEN, {"blobs.broken": "x"})):
        with pytest.raises(ConfigError, match="option 'blobs.broken'.*got 'x'"):
            load_config(preset, overrides)


@pytest.mark.parametrize(("kind", "near"), [("workload", "blob"), ("strategy", "source_onli"), ("engine", "rai")])
def test_an_unknown_name_gets_a_near_match(kind, near):
    with pytest.raises(ConfigError, match=f"unknown {kind} '{near}'; did you mean '{near[:2]}"):
        load_config({**CHOSEN, kind: near})
    with pytest.raises(ConfigError, match=f"option '{kind}' is empty; name one of"):
        load_config({**CHOSEN, kind: ""})


def test_a_list_is_no_option():
    with pytest.raises(ConfigError, match="the mapping: 'rounds' is a list"):
        load_config({"rounds": [1]})


# --- sections ---


@dataclass(frozen=True)
class Own:
    heat: float = Field(1.0, description="of the oven")


def test_two_of_one_run_cannot_have_one_section():
    spec = EngineSpec("", Own)
    engine = Plugin("mine:ENGINE", "oven", spec)
    assert active_sections({"engine": engine}) == {**COMMON_SECTIONS, "oven": Own}
    assert active_sections({"engine": engine, "other": engine})["oven"] is Own
    with pytest.raises(
        ConfigError, match=r"engine 'mine:ENGINE' would have its options under 'server', which is taken"
    ):
        active_sections({"engine": Plugin("mine:ENGINE", "server", spec)})
    other = Plugin("other", "oven", EngineSpec("", NoOptions))
    with pytest.raises(ConfigError, match="strategy 'other' would have its options under 'oven'.*`name` of its spec"):
        active_sections({"engine": engine, "strategy": other})
