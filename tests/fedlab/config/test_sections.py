"""Options of one section: listed, converted, refused with a sentence, and written as TOML."""

from __future__ import annotations

import dataclasses
import tomllib
from typing import Literal

import pytest
from pydantic import Field
from pydantic.dataclasses import dataclass

from fedlab.config.data_options import DataConfig
from fedlab.config.run_options import RunConfig
from fedlab.config.sections import (
    PositiveFloat,
    is_free_text,
    option_values,
    options,
    parse_section,
    section_fields,
    suggest_option,
    to_toml,
)
from fedlab.errors import ConfigError


@dataclass(frozen=True)
class Pizza:
    """A section of pydantic's: three options, and a field that the program sets."""

    topping: Literal["olives", "capers"] = Field("olives", description="what lies on it")
    heat: PositiveFloat = Field(0.5, description="of the oven")
    cheese: bool = True
    oven: str = Field("", exclude=True)


@dataclasses.dataclass(frozen=True)
class Soup:
    """A section of the standard library's."""

    salt: float = dataclasses.field(default=1.0, metadata={"description": "grams"})
    name: str = "tomato"
    spoons: int = dataclasses.field(default=2, init=False)
    stove: str = dataclasses.field(default="", metadata={"exclude": True})


@dataclass(frozen=True)
class Tea:
    """A section with a field that has no default."""

    leaves: str = Field(description="what is brewed")


# --- the table of options ---


def test_keys_carry_their_section_and_those_without_one_have_no_prefix():
    table = options({"pizza": Pizza, "": Soup})
    assert list(table) == ["pizza.topping", "pizza.heat", "pizza.cheese", "salt", "name"]
    assert table["pizza.heat"].key == "pizza.heat"
    assert (table["pizza.heat"].default, table["pizza.heat"].description) == (0.5, "of the oven")
    assert (table["salt"].default, table["salt"].description) == (1.0, "grams")


def test_what_the_program_sets_and_what_is_not_initialized_is_no_option():
    assert "oven" not in section_fields(Pizza)
    assert {"spoons", "stove"}.isdisjoint(section_fields(Soup))
    assert section_fields(int) == {}


def test_free_text_is_told_from_choices_numbers_and_switches():
    table = options({"pizza": Pizza, "soup": Soup, "tea": Tea})
    assert [key for key, option in table.items() if is_free_text(option)] == ["soup.name", "tea.leaves"]


def test_values_of_a_section_are_those_of_its_options():
    assert option_values(Pizza(topping="capers", oven="stone")) == {"topping": "capers", "heat": 0.5, "cheese": True}


# --- from values to a section ---


def test_what_is_not_given_has_its_default_and_other_keys_are_left_alone():
    assert parse_section(Pizza, "pizza", {}) == Pizza()
    assert parse_section(Pizza, "pizza", {"heat": 3.0, "soup.heat": 3.0}) == Pizza()


@pytest.mark.parametrize(
    ("text", "value"), [("false", False), ("no", False), ("off", False), ("0", False), ("true", True), ("on", True)]
)
def test_strings_of_a_command_line_become_switches(text, value):
    assert parse_section(Pizza, "pizza", {"pizza.cheese": text}).cheese is value


def test_strings_of_a_command_line_become_numbers_in_either_kind_of_dataclass():
    assert parse_section(Pizza, "pizza", {"pizza.heat": "1e3"}).heat == 1000.0
    soup = parse_section(Soup, "", {"salt": "2", "name": "3"})
    assert (soup.salt, soup.name) == (2.0, "3")
    assert type(soup.salt) is float


def test_the_program_sets_what_is_no_option():
    assert parse_section(Pizza, "pizza", {"pizza.oven": "electric"}, oven="stone").oven == "stone"
    assert parse_section(Pizza, "pizza", {"pizza.oven": "electric"}).oven == ""


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"pizza.topping": "pineapple"}, r"option 'pizza.topping' \(what lies on it\): got 'pineapple'.*'olives' or"),
        ({"pizza.heat": -1}, r"option 'pizza.heat' \(of the oven\): got -1; .*greater than 0"),
        ({"pizza.heat": "inf"}, "option 'pizza.heat'.*got 'inf'; .*finite"),
        ({"pizza.heat": "nan"}, "option 'pizza.heat'.*got 'nan'"),
        ({"pizza.cheese": "perhaps"}, "option 'pizza.cheese': got 'perhaps'; "),
    ],
)
def test_a_wrong_value_is_named_with_its_key_and_what_was_expected(values, sentence):
    with pytest.raises(ConfigError, match=sentence):
        parse_section(Pizza, "pizza", values)


@dataclass(frozen=True)
class Oven:
    """A section with a whole number that has no limit of its own."""

    degrees: int = 0


@pytest.mark.parametrize("value", [2**63, -(2**63), str(10**20)])
def test_a_whole_number_that_nothing_can_hold_is_refused(value):
    with pytest.raises(ConfigError, match=rf"option 'oven.degrees': got {value}; expected -\d+ to {2**63 - 1}"):
        parse_section(Oven, "oven", {"oven.degrees": value})
    assert parse_section(Oven, "oven", {"oven.degrees": 2**63 - 1}).degrees == 2**63 - 1


def test_a_form_of_text_is_described_in_words():
    with pytest.raises(ConfigError, match=r"\(auto, cpu, .*\): got 'gpu'; expected a value as described in brackets$"):
        parse_section(RunConfig, "", {"device": "gpu"})


def test_more_clients_than_memory_has_names_for_are_refused():
    for name in ("data.num_clients", "data.clients_per_domain"):
        with pytest.raises(ConfigError, match=f"{name}.*less than or equal to 1000000"):
            parse_section(DataConfig, "data", {name: 10**15})


def test_a_missing_value_says_what_to_set():
    with pytest.raises(ConfigError, match=r"option 'tea.leaves' \(what is brewed\) has no default; set it"):
        parse_section(Tea, "tea", {})


# --- near matches ---


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("heat", "did you mean 'pizza.heat'?"),
        ("soup.heat", "did you mean 'pizza.heat'?"),
        ("pizza.hat", "did you mean 'pizza.heat'?"),
        ("steps", "did you mean 'server.steps' or 'client.steps'?"),
        ("zzz", "known: client.steps, pizza.heat, server.steps."),
    ],
)
def test_the_option_that_may_be_meant_is_found_without_its_section_too(key, sentence):
    assert suggest_option(key, ["pizza.heat", "server.steps", "client.steps"]) == sentence


def test_what_can_be_used_is_meant_first():
    known = ["a.heat", "b.heat", "c.heat", "d.heat"]
    assert suggest_option("heat", known, ["c.heat"]) == "did you mean 'c.heat'?"
    assert "or" not in suggest_option("heat", known)  # four are too many to list


# --- TOML ---


def test_toml_keeps_every_value_and_its_type():
    values = {
        "flag": True,
        "count": 1,
        "pizza.share": 1.0,
        "late": 'quote " backslash \\ newline \n tab \t unicode \u00e9',  # without a section, after one with it
        "pizza.small": 1e-12,
        "pizza.alpha": float("inf"),
        "soup.empty": "",
    }
    read = tomllib.loads(to_toml(values))
    flat = {key: value for key, value in read.items() if not isinstance(value, dict)}
    flat |= {f"{prefix}.{key}": value for prefix in ("pizza", "soup") for key, value in read[prefix].items()}
    assert flat == values
    assert {key: type(value) for key, value in flat.items()} == {key: type(value) for key, value in values.items()}
