"""Presets: files as people save them, those that ship, and the command line's overrides."""

from __future__ import annotations

import codecs

import pytest

from fedlab.config.presets import flatten, parse_overrides, parse_preset, preset_names, read_preset
from fedlab.errors import ConfigError
from fedlab.registry import load_config

MEAL = 'description = "a meal for Zo\u00e9"\nrounds = 2\n[server]\nsteps = 3\n'


@pytest.fixture
def save(tmp_path):
    def save(content, name="evening.toml"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return save


# --- files ---


def test_a_file_is_flattened_and_described(save):
    description, values = read_preset(save(MEAL))
    assert description == "a meal for Zo\u00e9"
    assert values == {"rounds": 2, "server.steps": 3, "name": "evening"}


@pytest.mark.parametrize(
    "content",
    [
        codecs.BOM_UTF8 + MEAL.encode(),
        codecs.BOM_UTF16_LE + MEAL.encode("utf-16-le"),
        codecs.BOM_UTF16_BE + MEAL.encode("utf-16-be"),
        MEAL.replace("\n", "\r\n").encode(),
    ],
    ids=["UTF-8 with a mark", "UTF-16 LE", "UTF-16 BE", "line ends of Windows"],
)
def test_what_other_editors_save_is_read_as_well(save, content):
    description, values = read_preset(save(content))
    assert (description, values["rounds"], values["server.steps"]) == ("a meal for Zo\u00e9", 2, 3)


@pytest.mark.parametrize("name", ["evening.TOML", "Evening.Toml"])
def test_the_ending_may_be_written_in_capitals(save, name):
    assert read_preset(save(MEAL, name))[1]["name"] == name[:-5]


@pytest.mark.parametrize(("line", "name"), [('name = "other"', "other"), ('name = ""', "evening"), ("", "evening")])
def test_a_preset_is_named_by_itself_or_its_file(save, line, name):
    assert read_preset(save(line))[1]["name"] == name


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("rounds = ", "evening.toml is not valid TOML"),
        ("[server]\nsteps = [1, 2]", "'server.steps' is a list; an option is a bool, an int, a float or a string"),
        ("rounds = 2024-01-01", "'rounds' is a date"),
        ('"server.steps" = 3\n[server]\nsteps = 4', "'server.steps' is set twice, to 3 and 4"),
        (b'name = "\xff"', "evening.toml is not utf-8 text .*; save it as UTF-8"),
        (codecs.BOM_UTF16_LE + b"a", "evening.toml is not utf-16 text"),
    ],
)
def test_a_damaged_preset_is_a_sentence(save, content, sentence):
    with pytest.raises(ConfigError, match=sentence):
        read_preset(save(content))


def test_a_preset_that_does_not_exist(tmp_path):
    with pytest.raises(ConfigError, match="none.toml' does not exist"):
        read_preset(str(tmp_path / "none.toml"))
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        read_preset(str(tmp_path / "folder.toml"))
    with pytest.raises(ConfigError, match="unknown preset 'dualadapt-digit'; did you mean 'dualadapt-digits'"):
        read_preset("dualadapt-digit")


def test_a_mapping_with_a_name_that_is_no_text():
    with pytest.raises(ConfigError, match="here: 1 is a int; names of options are text"):
        flatten({1: "x"}, "here")


def test_a_switch_is_no_number():
    with pytest.raises(ConfigError, match="option 'rounds': got True; a number is expected"):
        load_config({"rounds": True})
    with pytest.raises(ConfigError, match="'server.learning_rate'.*: got False; a number is expected"):
        load_config({"server.learning_rate": False})


def test_tables_in_tables_become_dotted_keys():
    assert flatten({"a": {"b": {"c": 1}}, "d.e": "x"}, "here") == {"a.b.c": 1, "d.e": "x"}
    assert parse_preset("a.b = true", "here") == ("", {"a.b": True})


# --- those that ship ---


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_that_ships_resolves_and_has_a_description_and_its_own_name(name):
    description, values = read_preset(name)
    assert description
    assert values["name"] == name
    config = load_config(name)
    assert {key: type(value)(values[key]) for key, value in config.options().items() if key in values} == {
        key: value for key, value in config.options().items() if key in values
    }
    assert values.keys() <= config.options().keys()  # nothing in it is without effect


@pytest.mark.parametrize("name", preset_names())
def test_a_resolved_configuration_is_a_preset_that_gives_it_again(name, save):
    config = load_config(name, {"seed": 3})
    text = config.to_toml()
    again = load_config(save(text))
    assert again == config
    assert again.to_toml() == text


# --- overrides ---


def test_overrides_are_split_at_the_first_equals_sign():
    assert parse_overrides(["rounds=3", " name = a=b ", "data.root="]) == {
        "rounds": "3",
        "name": "a=b",
        "data.root": "",
    }


@pytest.mark.parametrize("item", ["rounds", "=3"])
def test_what_is_no_override_is_refused(item):
    with pytest.raises(ConfigError, match=f"{item!r} is no override; write key=value"):
        parse_overrides([item])
