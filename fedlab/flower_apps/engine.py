"""The engine of an app's clients: written among the overrides of its run config, ``engine=ray ray.address=...``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

from fedlab import registry
from fedlab.config.schema import Plugin
from fedlab.config.sections import Value, join_key, parse_section, section_fields
from fedlab.engines.spec import EngineSpec
from fedlab.errors import ConfigError, suggest

ENGINE = "engine"  # key among the overrides
DEFAULT = "inprocess"
Given = TypeVar("Given")
PROCESSES, WORKERS = "pool", "pool.workers"


@dataclass(frozen=True)
class AppEngine:
    """An engine by name, and the options of it that were given.

    Attributes
    ----------
    name
        Name or import path.
    options
        Values by dotted key.
    """

    name: str = DEFAULT
    options: Mapping[str, Value] = field(default_factory=dict)

    @classmethod
    def split(cls, overrides: Mapping[str, Given], run_config: Mapping[str, Value]) -> tuple[Self, dict[str, Given]]:
        """Return the engine that overrides name, and the other overrides.

        Parameters
        ----------
        overrides
            As they were written.
        run_config
            The app's own entries, which come first: an app may have an ``engine`` of its own.

        Raises
        ------
        ConfigError
            When there is no such engine, it cannot carry other people's apps, or it has no such option.
        """
        rest = dict(overrides)
        name = DEFAULT if ENGINE in run_config else str(_single(ENGINE, rest.pop(ENGINE, DEFAULT)))
        prefix = f"{_plugin(name).section}."
        keys = [key for key in rest if key.startswith(prefix) and key not in run_config]
        found = cls(name, {key: _single(key, rest.pop(key)) for key in keys})
        found.check_names()
        return found, rest

    @classmethod
    def of_processes(cls, workers: int) -> Self:
        """Return the engine of so many processes of this machine."""
        return cls(PROCESSES, {WORKERS: workers})

    def check_names(self) -> None:
        """Refuse an engine that carries fedlab's own apps only, and unknown or bad options.

        Raises
        ------
        ConfigError
            With a sentence.
        """
        if not self.spec.clients:
            able = [one for one in registry.names(ENGINE) if _spec(one).clients]
            raise ConfigError(
                f"engine {self.name!r} carries fedlab's own apps only; a Flower app of other people runs with engine="
                f"{' or '.join(able)}"
            )
        known = [join_key(self.section, name) for name in section_fields(self.spec.options)]
        for key in self.options:
            if key not in known:
                raise ConfigError(f"engine {self.name!r} has no option {key!r}; {suggest(key, known)}")
        self.parsed()

    @property
    def spec(self) -> EngineSpec:
        """The registry's description of it."""
        return _spec(self.name)

    @property
    def section(self) -> str:
        """Prefix of its options."""
        return _plugin(self.name).section

    def parsed(self) -> Any:
        """Return all its options.

        Raises
        ------
        ConfigError
            When a value is of another type or out of range.
        """
        return parse_section(self.spec.options, self.section, self.options)

    def written(self) -> list[str]:
        """Return the overrides that name it; none for the default."""
        named = [f"{ENGINE}={self.name}"] if self.name != DEFAULT else []
        values = {key: str(value).lower() if isinstance(value, bool) else value for key, value in self.options.items()}
        return [*named, *(f"{key}={value}" for key, value in values.items())]


def _single(key: str, value: object) -> Value:
    if not isinstance(value, bool | int | float | str):
        raise ConfigError(f"{key} is {value!r}; the engine is one for all runs: give one value")
    return value


def _plugin(name: str) -> Plugin:
    return registry.find(ENGINE, name)


def _spec(name: str) -> EngineSpec:
    found: EngineSpec = _plugin(name).spec
    return found
