"""Knobs: names, types, ranges, precedence, and the sentences of what is refused."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import Field
from pydantic.dataclasses import dataclass

from fedlab.config.schema import (
    CORE_SECTIONS,
    ClientTraining,
    Core,
    Rate,
    ServerTraining,
    build,
    flatten,
    knobs,
    parse_overrides,
    preset_names,
    read_preset,
    resolve,
    to_toml,
)
from fedlab.errors import ConfigError


@dataclass(frozen=True)
class Pizza:
    """A workload's section: two knobs of its own and one that it shares with the core."""

    topping: Literal["olives", "capers"] = Field("olives", description="what lies on it")
    heat: Rate = Field(0.5, description="of the oven")
    cheese: bool = True
    seed: int = 99


@dataclass(frozen=True)
class Soup:
    """A strategy's section."""

    salt: float = Field(1.0, ge=0, description="grams")


SECTIONS = {**CORE_SECTIONS, "pizza": Pizza, "soup": Soup}
CHOSEN = {"workload": "pizza", "strategy": "fedavg"}


# --- the table of knobs ---


def test_keys_carry_their_section_and_the_core_has_none():
    table = knobs(SECTIONS)
    assert table["rounds"].default == Core().rounds
    assert table["server.steps"].default == ServerTraining().steps
    assert table["client.steps"].default == ClientTraining().steps
    assert table["pizza.heat"].description == "of the oven"


def test_a_field_named_as_a_core_knob_is_the_core_knob():
    table = knobs(SECTIONS)
    assert "pizza.seed" not in table
    assert table["seed"].default == 0  # the core's default, not the section's
    assert build(Pizza, "pizza", {"seed": 5}).seed == 5


def test_every_core_knob_is_described_and_of_a_type_that_flower_carries():
    for knob in knobs(CORE_SECTIONS).values():
        assert knob.description, knob.key
        assert type(knob.default) in (bool, int, float, str), knob.key


# --- build ---


def test_what_is_not_given_has_its_default():
    assert build(Core, "", {}) == Core()
    assert build(ServerTraining, "server", {"steps": 1, "client.steps": 2}) == ServerTraining()


def test_strings_of_a_command_line_become_typed_values():
    core = build(Core, "", {"rounds": "3", "comm.idle_timeout": "0.5", "engine": "ray"})
    assert (core.rounds, core.reply_timeout, core.engine) == (3, 0.5, "ray")
    assert type(core.rounds) is int
    assert build(Pizza, "pizza", {"pizza.cheese": "false"}).cheese is False


@pytest.mark.parametrize(
    ("section", "prefix", "flat", "sentence"),
    [
        (Core, "", {"rounds": "many"}, r"option 'rounds' \(federated rounds\): got 'many'; input should be a valid int"),
        (Core, "", {"rounds": 0}, "option 'rounds'.*got 0; .*greater than or equal to 1"),
        (Core, "", {"rounds": 2.5}, "option 'rounds'.*got 2.5"),
        (Core, "", {"seed": -1}, "option 'seed'.*got -1"),
        (Core, "", {"device": "gpu"}, "option 'device'.*got 'gpu'"),
        (Core, "", {"device": "cuda:x"}, "option 'device'.*got 'cuda:x'"),
        (Core, "", {"comm.idle_timeout": 0}, "option 'reply_timeout'.*got 0; .*greater than 0"),
        (ServerTraining, "server", {"server.learning_rate": "inf"}, "'server.learning_rate'.*'inf'; .*finite"),
        (ServerTraining, "server", {"server.learning_rate": 0.0}, "'server.learning_rate'.*got 0.0"),
        (ServerTraining, "server", {"server.ema_decay": 1.0}, "'server.ema_decay'.*got 1.0; .*less than 1"),
        (ServerTraining, "server", {"server.batch_size": 1}, "'server.batch_size'.*got 1; "),
        (ClientTraining, "client", {"client.learning_rate": "nan"}, "'client.learning_rate'.*'nan'"),
        (Pizza, "pizza", {"pizza.topping": "pineapple"}, r"'pizza.topping' \(what lies on it\).*'olives' or 'capers'"),
        (Pizza, "pizza", {"seed": "x"}, "option 'seed': got 'x'"),
    ],
)
def test_a_wrong_value_is_named_with_its_key_and_what_was_expected(section, prefix, flat, sentence):
    with pytest.raises(ConfigError, match=sentence):
        build(section, prefix, flat)


def test_flatten_is_the_inverse_of_build():
    pizza = Pizza(topping="capers", heat=2.0, cheese=False, seed=7)
    flat = flatten("pizza", pizza)
    assert flat == {"pizza.topping": "capers", "pizza.heat": 2.0, "pizza.cheese": False, "seed": 7}
    assert build(Pizza, "pizza", flat) == pizza


# --- resolve ---


def test_defaults_then_preset_then_overrides():
    flat = resolve({"rounds": 2, "pizza.heat": 3.0}, {"pizza.heat": "4", "seed": "8"}, SECTIONS, CHOSEN)
    assert (flat["rounds"], flat["pizza.heat"], flat["seed"], flat["pizza.topping"]) == (2, 4.0, 8, "olives")
    assert set(flat) == set(knobs({**CORE_SECTIONS, "pizza": Pizza}))  # every knob in use, and soup's are not


def test_resolving_again_changes_nothing():
    flat = resolve({}, {"rounds": "2", "pizza.cheese": "no"}, SECTIONS, CHOSEN)
    assert resolve(flat, {}, SECTIONS, CHOSEN) == flat


@pytest.mark.parametrize("where", ["preset", "override"])
def test_an_unknown_knob_gets_a_suggest(where):
    tables = ({"roundz": 1}, {}) if where == "preset" else ({}, {"roundz": 1})
    with pytest.raises(ConfigError, match=r"unknown option 'roundz'; did you mean 'rounds'\? `fedlab list knobs`"):
        resolve(*tables, SECTIONS, CHOSEN)


def test_a_knob_without_effect_is_refused_on_the_command_line_and_left_out_of_a_preset():
    with pytest.raises(ConfigError, match="'soup.salt' has no effect.*workload 'pizza' and strategy 'fedavg'"):
        resolve({}, {"soup.salt": 2}, SECTIONS, CHOSEN)
    assert "soup.salt" not in resolve({"soup.salt": 2.0}, {}, SECTIONS, CHOSEN)


def test_a_bad_value_in_a_preset_is_refused():
    with pytest.raises(ConfigError, match="option 'pizza.heat'.*got -1"):
        resolve({"pizza.heat": -1}, {}, SECTIONS, CHOSEN)


@pytest.mark.parametrize(("overrides", "name"), [({}, "lunch"), ({"name": ""}, "lunch"), ({"name": "tea"}, "tea")])
def test_an_empty_name_is_the_presets(overrides, name):
    assert resolve({"name": "lunch"}, overrides, SECTIONS, CHOSEN)["name"] == name


# --- overrides ---


def test_overrides_are_split_at_the_first_equals_sign():
    assert parse_overrides(["rounds=3", " name = a=b ", "data_root="]) == {
        "rounds": "3",
        "name": "a=b",
        "data.root": "",
    }


@pytest.mark.parametrize("item", ["rounds", "=3"])
def test_what_is_no_override_is_refused(item):
    with pytest.raises(ConfigError, match=f"{item!r} is no override; write key=value"):
        parse_overrides([item])


# --- presets and TOML ---


def test_a_preset_file_is_flattened_and_described(tmp_path):
    path = tmp_path / "evening.toml"
    path.write_text('description = "a meal"\nrounds = 2\n[pizza]\nheat = 1.5\ncheese = false\n')
    description, flat = read_preset(str(path))
    assert description == "a meal"
    assert flat == {"rounds": 2, "pizza.heat": 1.5, "pizza.cheese": False, "name": "evening"}


@pytest.mark.parametrize(("line", "name"), [('name = "other"', "other"), ('name = ""', "evening"), ("", "evening")])
def test_a_preset_is_named_by_itself_or_its_file(tmp_path, line, name):
    path = tmp_path / "evening.toml"
    path.write_text(line)
    assert read_preset(str(path))[1]["name"] == name


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("rounds = ", "evening.toml is not valid TOML"),
        ("[pizza]\nheat = [1, 2]", "'pizza.heat' is a list; a knob is a bool, an int, a float or a string"),
        ("rounds = 2024-01-01", "'rounds' is a date"),
    ],
)
def test_a_damaged_preset_is_a_sentence(tmp_path, text, sentence):
    path = tmp_path / "evening.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        read_preset(str(path))


def test_a_preset_that_is_not_utf8_is_a_sentence(tmp_path):
    path = tmp_path / "evening.toml"
    path.write_bytes(b'name = "\xff"')
    with pytest.raises(ConfigError, match="not valid TOML"):
        read_preset(str(path))


def test_a_preset_that_does_not_exist(tmp_path):
    with pytest.raises(ConfigError, match="none.toml' does not exist"):
        read_preset(str(tmp_path / "none.toml"))
    with pytest.raises(ConfigError, match="unknown preset 'dualadapt-digit'; did you mean 'dualadapt-digits'"):
        read_preset("dualadapt-digit")


@pytest.mark.parametrize("name", preset_names())
def test_presets_that_ship_have_a_description_and_their_own_name(name):
    description, flat = read_preset(name)
    assert description
    assert flat["name"] == name


def test_toml_keeps_every_value_and_its_type(tmp_path):
    flat = {
        "flag": True,
        "count": 1,
        "pizza.share": 1.0,
        "late": 'quote " backslash \\ newline \n tab \t unicode \u00e9',  # a core knob after a section's
        "pizza.small": 1e-12,
        "pizza.alpha": float("inf"),
        "soup.empty": "",
        "name": "lunch",
    }
    path = tmp_path / "config.toml"
    path.write_text(to_toml(flat), encoding="utf-8")
    _, read = read_preset(str(path))
    assert read == flat
    assert {key: type(value) for key, value in read.items()} == {key: type(value) for key, value in flat.items()}
