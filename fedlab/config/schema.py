"""The configuration of a run: one tree of frozen dataclasses, resolved once and read everywhere below.

Every section is a pydantic dataclass whose fields are options. An option is written ``section.field``
(``server.steps``); those of :class:`RunConfig` have no prefix (``rounds``). Sections of the workload, the strategy, its
aggregation rule and the engine are defined where these are, and are named after them (``digits.targets``).

A field with ``exclude=True`` is no option: it is set by the program, not by a user.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from typing import Any

from pydantic.dataclasses import dataclass

from fedlab.config.data_options import DataConfig
from fedlab.config.run_options import CheckpointConfig, CommConfig, PrivacyConfig, RunConfig, StopConfig
from fedlab.config.sections import Value, option_values, split_names, to_toml
from fedlab.config.training_options import ClientConfig, ServerConfig
from fedlab.errors import ConfigError, suggest

RUN = ""  # prefix of RunConfig's options


@dataclass(frozen=True)
class NoOptions:
    """The section of something without options."""


COMMON_SECTIONS: Mapping[str, type] = {
    RUN: RunConfig,
    "comm": CommConfig,
    "checkpoint": CheckpointConfig,
    "data": DataConfig,
    "server": ServerConfig,
    "client": ClientConfig,
    "dp": PrivacyConfig,
    "stop": StopConfig,
}


@plain_dataclass(frozen=True)
class Plugin:
    """One of the things that a run chooses by name, as the registry found it.

    Attributes
    ----------
    reference
        How it was asked for: a name, or an import path ``pkg.module:Name``.
    section
        Prefix of its options.
    spec
        What describes it: a WorkloadSpec, StrategySpec, AggregationSpec or EngineSpec.
    """

    reference: str
    section: str
    spec: Any


@plain_dataclass(frozen=True)
class Config:
    """Every option of one run, typed.

    Attributes
    ----------
    run, comm, checkpoint, data, server, client, dp, stop
        The sections that every run has.
    workload
        The workload itself: its fields are its options.
    strategy, aggregation, adaptation, engine
        Options of the strategy, of the rule by which it combines whole models and of the method by which its clients
        adapt (None where it has none), of the engine.
    plugins
        What was found under the names of workload, strategy, aggregation, adaptation and engine.
    """

    run: RunConfig
    comm: CommConfig
    checkpoint: CheckpointConfig
    data: DataConfig
    server: ServerConfig
    client: ClientConfig
    dp: PrivacyConfig
    stop: StopConfig
    workload: Any
    strategy: Any
    aggregation: Any
    adaptation: Any
    engine: Any
    plugins: Mapping[str, Plugin]

    @property
    def clients(self) -> tuple[str, ...]:
        """Names of the clients that take part, by partition."""
        return tuple(self.workload.clients[: self.data.num_clients or None])

    @property
    def secret_noise(self) -> bool:
        """True if the noise of differential privacy comes from the operating system, not from the run's seed."""
        simulates: bool = self.plugins["engine"].spec.simulates_clients
        return self.dp.noise == "secret" or (self.dp.noise == "auto" and not simulates)

    @property
    def clients_limit_each_other(self) -> bool:
        """True if what a client adds to a round is limited by what the others add."""
        simulates: bool = self.plugins["engine"].spec.simulates_clients
        return self.server.agreement == "limit" or (self.server.agreement == "auto" and not simulates)

    def for_client(self, server_round: int) -> Config:
        """Return the configuration with which a client trains in a round: its learning rate is that of the round."""
        client = self.client.at_round(server_round, self.run.rounds)
        return self if client is self.client else replace(self, client=client)

    def sections(self) -> dict[str, Any]:
        """Return every section by its prefix, those that every run has first."""
        found = {
            RUN: self.run,
            "comm": self.comm,
            "checkpoint": self.checkpoint,
            "data": self.data,
            "server": self.server,
            "client": self.client,
            "dp": self.dp,
            "stop": self.stop,
        }
        for kind, plugin in self.plugins.items():
            section = getattr(self, kind)
            known = isinstance(section, plugin.spec.options)  # else an object that was made elsewhere, as it is
            found.setdefault(plugin.section, section if known else NoOptions())
        return found

    def options(self) -> dict[str, Value]:
        """Return every option by its key, as ``{"rounds": 5, "server.steps": 48, ...}``: for display and comparison."""
        return {
            f"{prefix}.{name}" if prefix else name: value
            for prefix, section in self.sections().items()
            for name, value in option_values(section).items()
        }

    def to_toml(self) -> str:
        """Return the configuration as TOML text, which is itself a preset."""
        return to_toml(self.options())


def parse_join_rounds(text: str, names: Mapping[int, str]) -> dict[int, int]:
    """Return the round in which each late joiner joins, by partition, from ``usps=3,optdigits=4``.

    Raises
    ------
    ConfigError
        When an item is not ``client=round``, or names a client that the run does not have.
    """
    partition_of = {name: partition for partition, name in names.items()}
    found: dict[int, int] = {}
    for item in split_names("join_rounds", text):
        name, _, number = (part.strip() for part in item.partition("="))
        if not number.isdigit() or int(number) < 1:
            raise ConfigError(
                f"option 'join_rounds': {item!r} is not client=round with a round from 1, for example usps=3"
            )
        if name not in partition_of:
            raise ConfigError(f"option 'join_rounds': this run has no client {name!r}; {suggest(name, partition_of)}")
        found[partition_of[name]] = int(number)
    if found and len(found) == len(names):
        raise ConfigError("option 'join_rounds': every client joins late; at least one must be there from the start")
    return found
