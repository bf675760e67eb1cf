"""Presets: TOML files of options, those that ship with the package and a user's own."""

from __future__ import annotations

import codecs
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fedlab.config.sections import Overrides, Value
from fedlab.errors import ConfigError, suggest

PRESETS = Path(__file__).parent / "presets"
SUFFIX = ".toml"
MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def preset_names() -> list[str]:
    """Return the names of the presets that ship with the package."""
    return sorted(path.stem for path in PRESETS.glob(f"*{SUFFIX}"))


def is_file_name(name: str) -> bool:
    """Return True where a preset is named by the path of its file."""
    return name.lower().endswith(SUFFIX)


def read_preset(name: str, others: Iterable[str] = ()) -> tuple[str, dict[str, Value]]:
    """Return description and options of a preset, by name or by path of a TOML file.

    Parameters
    ----------
    others
        Names of presets that other packages bring, for the message.

    Raises
    ------
    ConfigError
        When there is no such preset or file, or the file is no TOML table of plain values.
    """
    if not is_file_name(name) and name not in preset_names():
        raise ConfigError(f"unknown preset {name!r}; {suggest(name, [*preset_names(), *others])}")
    path = Path(name) if is_file_name(name) else PRESETS / f"{name}{SUFFIX}"
    if not path.is_file():
        raise ConfigError(f"preset file {name!r} {'is a folder; name a file' if path.is_dir() else 'does not exist'}")
    description, values = parse_preset(_text(path), f"preset {path}")
    values["name"] = values.get("name") or path.stem
    return description, values


def parse_preset(text: str, where: str) -> tuple[str, dict[str, Value]]:
    """Return description and options of TOML text; ``where`` names it in messages.

    Raises
    ------
    ConfigError
        When the text is no TOML table of plain values.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where} is not valid TOML: {error}") from None
    return str(table.pop("description", "")), flatten(table, where)


def flatten(table: Mapping[str, Any], where: str) -> dict[str, Value]:
    """Return options by dotted key from nested tables, as of TOML or of Python dictionaries.

    Raises
    ------
    ConfigError
        When a value is neither a table nor a bool, an int, a float or a string, a name is no text, or an option is
        set twice.
    """
    found: dict[str, Value] = {}
    for key, value in _items(table, where, ""):
        if key in found:
            raise ConfigError(f"{where}: option {key!r} is set twice, to {found[key]!r} and {value!r}; keep one")
        found[key] = value
    return found


def _items(table: Mapping[str, Any], where: str, prefix: str) -> Iterable[tuple[str, Value]]:
    for name, value in table.items():
        if not isinstance(name, str):
            raise ConfigError(f"{where}: {name!r} is a {type(name).__name__}; names of options are text")
        if isinstance(value, Mapping):
            yield from _items(value, where, f"{prefix}{name}.")
        elif isinstance(value, bool | int | float | str):
            yield prefix + name, value
        else:
            raise ConfigError(
                f"{where}: {prefix + name!r} is a {type(value).__name__}; "
                "an option is a bool, an int, a float or a string"
            )


def _text(path: Path) -> str:
    """The text of a preset: UTF-8, or UTF-16 with its byte-order mark."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"preset {path} cannot be read: {error}") from None
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ConfigError(f"preset {path} is not {encoding} text ({error}); save it as UTF-8") from None


def parse_overrides(items: Iterable[str]) -> Overrides:
    """Return ``["rounds=3", "dualadapt.mixup=off"]`` as a mapping of strings, converted when they are checked.

    Raises
    ------
    ConfigError
        When an item is not ``key=value``.
    """
    overrides: dict[str, Value] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise ConfigError(f"{item!r} is no override; write key=value, for example rounds=3")
        overrides[key.strip()] = value.strip()
    return overrides
