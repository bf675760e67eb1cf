"""Parsers of the arguments of a comparison: strategies, seeds, options with several values, budgets.

A *variant* is a strategy as it is compared. On the command line it is ``NAME``, ``NAME:option=value:option=value`` or
``LABEL=NAME:...``; an option without a dot is the strategy's own where it has such a one. An import path
(``pkg.module:SPEC``) is a name as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from pathlib import PurePath
from typing import Any

from fedlab import registry
from fedlab.config.resolve import active_sections
from fedlab.config.sections import Overrides, Value, is_free_text, options, section_fields, suggest_option
from fedlab.errors import ConfigError
from fedlab.strategies.ablations import expand_ablation

SEPARATOR = "|"  # between values that may hold commas themselves
# Options that other options set.
RESERVED = {
    "strategy": "--strategies a,b",
    "seed": "--seeds",
    "name": "--out",
    "run_dir": "fedlab itself",
    "checkpoint.pretrain_cache": "fedlab itself",
    "checkpoint.keep_initial": "fedlab itself",
    "budget_bytes": "--budget bytes=5MB",
    "budget_seconds": "--budget seconds=60",
}
UNITS = {"": 1.0, "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "s": 1.0, "min": 60.0, "h": 3600.0}
BUDGETS = "write rounds=3, bytes=5MB (kB, MB, GB) or seconds=60 (s, min, h)"
UNITS_OF = {"rounds": ("",), "bytes": ("", "b", "kb", "mb", "gb"), "seconds": ("", "s", "min", "h")}


@dataclass(frozen=True)
class Variant:
    """A strategy as it is compared; ``name`` is what it is called by, ``options`` what was written behind it."""

    label: str
    name: str
    options: Overrides


def parse_strategies(text: str | Sequence[str]) -> list[Variant]:
    """Parse ``a,LABEL=b:option=value`` as variants; ``|`` separates them where an option's value holds a comma.

    Raises
    ------
    ConfigError
        For a strategy that does not exist, an option without a value, or two variants of one label.
    """
    parts = text.split(SEPARATOR if SEPARATOR in text else ",") if isinstance(text, str) else list(text)
    variants = [_variant(part.strip()) for part in parts if part.strip()]
    names = [variant.label.partition(":")[0] for variant in variants]
    variants = [  # what stands behind a name is part of the label only where it tells two variants apart
        replace(variant, label=name) if names.count(name) == 1 else variant
        for name, variant in zip(names, variants, strict=True)
    ]
    if not variants:
        raise ConfigError("no strategy to compare; write --strategies source_only,dualadapt (see `fedlab list`)")
    labels = [variant.label for variant in variants]
    twice = next((name for name in labels if labels.count(name) > 1), None)
    if twice:
        raise ConfigError(f"two variants are called {twice!r}; give one a name of its own: LABEL={twice}")
    return variants


def join_variants(parts: Sequence[str]) -> str:
    """Return variants as one text that ``parse_strategies`` parses."""
    if not any("," in part for part in parts):
        return ",".join(parts)
    return SEPARATOR.join([*parts, ""] if len(parts) == 1 else parts)


def _variant(text: str) -> Variant:
    head, *written = text.split(":")
    label, named, name = head.rpartition("=")
    if written and "=" not in written[0] and name not in (*registry.names("strategy"), *registry.ablation_names()):
        name = f"{name}:{written.pop(0)}"
    base = registry.find("strategy", str(expand_ablation({}, {"strategy": name})[0].get("strategy", name)))
    own = section_fields(base.spec.options)
    found: dict[str, Value] = {}
    for item in written:
        option, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not option:
            raise ConfigError(f"{item!r} of variant {text!r} is no option; write {name}:option=value")
        found[f"{base.section}.{option}" if option in own else option] = value
    usual = ":".join([base.section, *written]) if ":" in name else text
    return Variant(label.strip() if named else usual, name, found)


def parse_seeds(text: str | int | Sequence[int]) -> list[int]:
    """Parse ``5`` as seeds 0 to 4, ``3,4,9`` as those three, ``3,`` as that one.

    Raises
    ------
    ConfigError
        For what is neither.
    """
    if isinstance(text, str) and "," not in text and text.strip().isdecimal():
        text = int(text)
    asked = text
    if isinstance(text, Integral):
        text = range(int(text))
    each = text.split(",") if isinstance(text, str) else text if isinstance(text, Iterable) else [text]
    parts = [part for part in map(str, each) if part.strip()]
    seeds = [int(part) for part in parts if part.strip().isdecimal()]
    if not seeds or len(seeds) < len(parts) or len(set(seeds)) < len(seeds):
        raise ConfigError(
            f"seeds are {str(asked)!r}; write how many (5: seeds 0 to 4), or each of them once (0,3,7; one alone: 3,)"
        )
    return seeds


def sections_of(preset: str | Mapping[str, Any]) -> dict[str, type]:
    """Return every section that exists, and those of what a preset names by import path.

    Raises
    ------
    ConfigError
        When there is no such preset, or it names something that does not exist.
    """
    return {**registry.all_sections(), **active_sections(registry.plugins_of(registry.preset_options(preset)))}


def parse_options(items: Mapping[str, object], sections: Mapping[str, type] | None = None) -> dict[str, list[Value]]:
    """Return the values of each option, from ``{"server.steps": "24,48"}``; a list is taken as it is.

    A comma stands between values of an option that is a number, a switch or a choice; one of free text
    (``digits.targets=usps,mnist_m``) is taken whole. ``|`` stands between values of any option.

    Parameters
    ----------
    sections
        The sections whose options are known; None: those of all that has a name.

    Raises
    ------
    ConfigError
        For an unknown option, with the near match; one that other options set; a value given twice.
    """
    known, found = options(registry.all_sections() if sections is None else sections), {}
    for name, given in items.items():
        if name not in known:
            raise ConfigError(f"unknown option {name!r}; {suggest_option(name, known)} `fedlab list options` shows all")
        if name in RESERVED:
            raise ConfigError(f"option {name!r} is set by {RESERVED[name]}")
        values = split_values(given, is_free_text(known[name]))
        if not values or len({str(value) for value in values}) < len(values):
            raise ConfigError(f"option {name!r}: {given!r} gives no value, or one of them twice")
        found[name] = values
    return found


def split_values(given: object, text: bool) -> list[Value]:
    """Return the values of an option as it was written; ``text`` says that a comma is part of a value."""
    if isinstance(given, PurePath):
        return [str(given)]
    if isinstance(given, str):
        separator = SEPARATOR if text or SEPARATOR in given else ","
        return [part.strip() for part in given.split(separator)]
    return list(given) if isinstance(given, Iterable) and not isinstance(given, Mapping) else [given]  # type: ignore[list-item]


def format_value(value: Value) -> str:
    """Return an option's value as it is written on the command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def as_options(budget: Mapping[str, float]) -> Overrides:
    """Return a budget as options.

    Raises
    ------
    ConfigError
        For any other kind of budget, or an amount that is none.
    """
    names = {"rounds": "rounds", "bytes": "budget_bytes", "seconds": "budget_seconds"}
    for kind, value in budget.items():
        if kind not in names or not _is_amount(kind, value):
            raise ConfigError(f"{kind}={value} is no budget; {BUDGETS}")
    return {names[kind]: int(value) if kind == "rounds" else value for kind, value in budget.items()}


def _is_amount(kind: str, value: object) -> bool:
    """Return True if so many rounds, bytes or seconds can be a budget."""
    if not isinstance(value, Real):
        return False
    amount = float(value)
    return 0 < amount < float("inf") and (kind != "rounds" or amount.is_integer())


def parse_budget(items: Iterable[str]) -> dict[str, float]:
    """Parse ``["bytes=5MB", "rounds=20"]`` as plain numbers of rounds, bytes and seconds.

    Raises
    ------
    ConfigError
        For any other kind of budget, a number that is not positive, or a unit that is not one of that kind.
    """
    found: dict[str, float] = {}
    for item in items:
        kind, _, amount = (part.strip() for part in item.partition("="))
        number = amount.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
        unit = amount.removeprefix(number).lower()
        try:
            value = float(number) * UNITS[unit]
            right = unit in UNITS_OF[kind] and _is_amount(kind, value)
        except (KeyError, ValueError):
            right = False
        if not right or kind in found:
            raise ConfigError(f"{item!r} is no budget; {BUDGETS}")
        found[kind] = value
    return found
