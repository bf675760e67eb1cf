"""Options of one section: the fields of a dataclass, listed, checked, and written as TOML."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, TypeVar, cast, get_type_hints

import tomli_w
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError
from pydantic.fields import FieldInfo

from fedlab.errors import ConfigError, suggest

Value = bool | int | float | str
Overrides = Mapping[str, Value]  # option key -> value, as a user writes them
Section = TypeVar("Section")

# As pydantic's types of these names, but finite.
PositiveFloat = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0.0, le=1.0)]

LARGEST = 2**63 - 1  # whole number that TOML, Flower's messages and torch can hold
MAX_SUGGESTIONS = 3  # options of one name in several sections that a message lists


@dataclass(frozen=True)
class Option:
    """One option: its key, type, default and description."""

    key: str
    type: Any
    default: Any
    description: str


def section_fields(section: type[Any]) -> dict[str, Option]:
    """Return the options of a section by field name: a dataclass, pydantic's or the standard library's.

    Those that a class inherits come last. Fields that are not initialized, excluded with ``Field(exclude=True)`` or
    ``field(metadata={"exclude": True})``, or dataclasses themselves are no options; the default of an option that has
    none is None.
    """
    return _section_fields(section)  # type: ignore[arg-type]


@cache
def _section_fields(section: type[Any]) -> dict[str, Option]:
    found: dict[str, Option] = {}
    if not dataclasses.is_dataclass(section):
        return found
    pydantic_fields: Mapping[str, FieldInfo] = getattr(section, "__pydantic_fields__", {})
    types = get_type_hints(section)
    own = vars(section).get("__annotations__", {})
    for field in sorted(dataclasses.fields(section), key=lambda field: field.name not in own):
        info = pydantic_fields.get(field.name)
        excluded = info.exclude if info is not None else field.metadata.get("exclude")
        if not field.init or excluded or dataclasses.is_dataclass(types[field.name]):
            continue
        if info is not None:
            missing, description = info.is_required(), info.description or ""
            default = None if missing else info.get_default(call_default_factory=True, validated_data={})
        else:
            default = field.default_factory() if callable(field.default_factory) else field.default
            default = None if default is dataclasses.MISSING else default
            description = str(field.metadata.get("description", ""))
        found[field.name] = Option(field.name, types[field.name], default, description)
    return found


def split_names(option: str, text: str) -> tuple[str, ...]:
    """Return the names in the comma-separated text of an option, for instance of ``track``; none of an empty one.

    Raises
    ------
    ConfigError
        When the text is not empty and names nothing.

    >>> split_names("track", "wandb, mlflow"), split_names("track", "")
    (('wandb', 'mlflow'), ())
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if text and not names:
        raise ConfigError(
            f"option {option!r}: {text!r} names nothing; give names with a comma between them, or leave the option out"
        )
    return names


def join_key(prefix: str, name: str) -> str:
    """Return the key of a field: ``section.field``, or the field alone for the section without a prefix."""
    return f"{prefix}.{name}" if prefix else name


def options(sections: Mapping[str, type]) -> dict[str, Option]:
    """Return every option of the given sections by its key."""
    return {
        join_key(prefix, name): dataclasses.replace(option, key=join_key(prefix, name))
        for prefix, section in sections.items()
        for name, option in section_fields(section).items()
    }


def is_free_text(option: Option) -> bool:
    """Return True for an option of any text: no number, no switch, and no choice of a few words."""
    return option.type is str


def option_values(section: object) -> dict[str, Value]:
    """Return the values of a section's options by field name."""
    return {name: getattr(section, name) for name in section_fields(cast(type[Any], type(section)))}


def parse_section(section: type[Section], prefix: str, values: Overrides, **program: object) -> Section:
    """Build a section from the values under its prefix, checked and converted; other keys are left alone.

    Parameters
    ----------
    program
        Fields that are no options, set by the program.

    Raises
    ------
    ConfigError
        When a value has a wrong type or is out of range, or a field without a default is missing; the message names
        the option, the value and what was expected.
    """
    known = section_fields(cast(type[Any], section))
    given = {name: values[key] for name in known if (key := join_key(prefix, name)) in values}
    for name, value in given.items():
        if isinstance(value, bool) and known[name].type in (int, float):  # pydantic takes True for 1
            raise ConfigError(f"option {join_key(prefix, name)!r}: got {value!r}; a number is expected")
    try:
        parsed = TypeAdapter(section).validate_python({**given, **program})
    except PydanticSchemaGenerationError:
        raise ConfigError(
            f"the options under {prefix!r} have a field whose type is none of bool, int, float, str or Literal; "
            "give it one of these"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else prefix
        about = f" ({known[name].description})" if name in known and known[name].description else ""
        wanted = first["msg"][0].lower() + first["msg"][1:].removeprefix("Value error, ")
        if first["type"] == "string_pattern_mismatch" and about:
            wanted = "expected a value as described in brackets"  # which say more to a user than a regular expression
        if first["type"] == "missing":
            raise ConfigError(f"option {join_key(prefix, name)!r}{about} has no default; set it") from None
        raise ConfigError(f"option {join_key(prefix, name)!r}{about}: got {given.get(name)!r}; {wanted}") from None
    for name in given:
        value = getattr(parsed, name)
        if isinstance(value, int) and not -LARGEST <= value <= LARGEST:
            came = str(given[name])[:40]
            raise ConfigError(f"option {join_key(prefix, name)!r}: got {came}; expected {-LARGEST} to {LARGEST}")
    return parsed


def suggest_option(key: str, known: Iterable[str], usable: Iterable[str] = ()) -> str:
    """Return the end of a message that names the option that may be meant, also one written without its section.

    Those in ``usable`` come first.
    """
    known = list(known)
    last = key.rpartition(".")[2]
    for names in (list(usable), known):
        same = [name for name in names if name.rpartition(".")[2] == last]
        if 1 <= len(same) <= MAX_SUGGESTIONS:
            return f"did you mean {' or '.join(map(repr, same))}?"
    return suggest(key, known)


def to_toml(values: Overrides) -> str:
    """Return options as TOML text with one table per section."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[name] = value
    return tomli_w.dumps(nested)
