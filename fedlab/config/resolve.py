"""From a preset and overrides to one typed :class:`fedlab.config.schema.Config`, with every key and value checked.

The registry says which plug-ins are in use; nothing is looked up here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedlab.config.data_options import DATA_CONFIG, DataConfig
from fedlab.config.lr_schedules import check_schedule
from fedlab.config.renamed import RENAMED
from fedlab.config.run_options import CheckpointConfig, CommConfig, PrivacyConfig, RunConfig, StopConfig
from fedlab.config.schema import COMMON_SECTIONS, Config, Plugin
from fedlab.config.sections import Overrides, Value, options, parse_section, suggest_option
from fedlab.config.training_options import ClientConfig, ServerConfig
from fedlab.errors import ConfigError

THREADS = 2  # of each process, unless there are many clients or an option says otherwise
FEW_CLIENTS = 8  # up to so many clients a round train one after another in one process


# An option given alone takes its alternative back to the default: whoever asks for steps does not want epochs.
ALTERNATIVES: Mapping[str, str] = {"client.steps": "client.epochs"}


def put_over(below: Overrides, above: Overrides) -> dict[str, Value]:
    """Return options with others over them, where an option given above also drops its alternative given below.

    >>> put_over({"client.epochs": 1.0, "rounds": 5}, {"client.steps": 30})
    {'rounds': 5, 'client.steps': 30}
    """
    dropped = {other for option, other in ALTERNATIVES.items() if option in above and other not in above}
    return {**{name: value for name, value in below.items() if name not in dropped}, **above}


def check_keys(
    preset: Overrides,
    overrides: Overrides,
    plugins: Mapping[str, Plugin],
    everything: Callable[[], Mapping[str, type]],
    users: Callable[[str], Sequence[str]] = lambda key: (),
) -> None:
    """Refuse options that do not exist, and overrides of something that is not in use.

    Parameters
    ----------
    plugins
        What is in use, by kind.
    everything
        Returns every section that exists; asked only where a key is not of what is in use.
    users
        Returns the settings, as ``strategy=scaffold``, with which an option has an effect.

    Raises
    ------
    ConfigError
        With the option that may be meant.
    """
    usable = options(active_sections(plugins))
    strangers = [key for key in (*preset, *overrides) if key not in usable]
    known = {**options(everything()), **usable} if strangers else usable
    for key in strangers:
        if key not in known:
            raise ConfigError(
                f"unknown option {key!r}; {_suggestion(key, known, usable)} `fedlab list options` shows all"
            )
        if key in overrides:
            in_use = ", ".join(f"{kind} {plugin.reference!r}" for kind, plugin in plugins.items())
            settings = users(key)
            remedy = f"; it has an effect with {' or '.join(settings)}" if settings else ""
            here = (f"{plugin.section}.{key.rpartition('.')[2]}" for plugin in plugins.values())
            if alike := [name for name in here if name in usable]:  # a workload made from another one has its options
                remedy += f"; {' and '.join(map(repr, alike))} {'is' if len(alike) == 1 else 'are'} in use here"
            raise ConfigError(f"option {key!r} has no effect in this run, which uses {in_use}{remedy}")


def _suggestion(key: str, known: Mapping[str, object], usable: Mapping[str, object]) -> str:
    new = RENAMED.get(key) or RENAMED.get(f"*.{key.rpartition('.')[2]}", "").replace("*", key.rpartition(".")[0])
    return f"it is called {new!r} now." if new in known else suggest_option(key, known, usable)


def active_sections(plugins: Mapping[str, Plugin]) -> dict[str, type]:
    """Return the sections of a run by prefix: those that every run has, and those of what it uses.

    Raises
    ------
    ConfigError
        When two of them would have one prefix.
    """
    found: dict[str, type] = dict(COMMON_SECTIONS)
    for kind, plugin in plugins.items():
        section = plugin.spec.options
        if found.setdefault(plugin.section, section) is not section:
            raise ConfigError(
                f"{kind} {plugin.reference!r} would have its options under {plugin.section!r}, which is taken; give it "
                "another name (`name` of its spec)"
            )
    return found


def build_config(values: Overrides, plugins: Mapping[str, Plugin], client_folder: str = "") -> Config:
    """Build the typed configuration from merged options.

    Parameters
    ----------
    client_folder
        A client's own data, on the client's machine only.

    Raises
    ------
    ConfigError
        When a value has a wrong type or is out of range, or the workload refuses its options.
    """
    run = parse_section(RunConfig, "", values)
    program = {"seed": run.seed, "device": run.device, "client_folder": client_folder}
    data = parse_section(DataConfig, "data", values, **program)
    config = Config(
        run=run,
        comm=parse_section(CommConfig, "comm", values),
        checkpoint=parse_section(CheckpointConfig, "checkpoint", values),
        data=data,
        server=parse_section(ServerConfig, "server", values),
        client=parse_section(ClientConfig, "client", values),
        dp=parse_section(PrivacyConfig, "dp", values),
        stop=parse_section(StopConfig, "stop", values),
        workload=_workload(plugins["workload"], values, data),
        strategy=_options(plugins["strategy"], values),
        aggregation=_options(plugins["aggregation"], values) if "aggregation" in plugins else None,
        adaptation=_options(plugins["adaptation"], values) if "adaptation" in plugins else None,
        engine=_options(plugins["engine"], values),
        plugins=dict(plugins),
    )
    check_schedule("server", config.server)
    check_schedule("client", config.client)
    return (
        config if run.threads else dataclasses.replace(config, run=dataclasses.replace(run, threads=_threads(config)))
    )


def clients_in_a_round(config: Config) -> int:
    """Return how many clients train in a round, at most."""
    return max(1, round(config.run.fraction_train * len(config.clients)))


def _threads(config: Config) -> int:
    """Return the threads of each process: with many clients there are many processes, each with one of them."""
    return 1 if clients_in_a_round(config) > FEW_CLIENTS else THREADS


def with_options(config: Config, changes: Overrides) -> Config:
    """Return the configuration with some options changed; what is in use stays.

    Raises
    ------
    ConfigError
        When a value has a wrong type or is out of range.
    """
    return build_config({**config.options(), **changes}, config.plugins, config.data.client_folder)


def _options(plugin: Plugin, values: Overrides) -> Any:
    return parse_section(plugin.spec.options, plugin.section, values)


def _workload(plugin: Plugin, values: Overrides, data: DataConfig) -> Any:
    """The workload with its options, and with the run's data section where it has a field for it."""
    made = plugin.spec.workload
    if not isinstance(made, type):
        return made
    if not dataclasses.is_dataclass(made):
        try:
            return made()
        except Exception as error:
            raise ConfigError(
                f"workload {plugin.reference!r}: making it raised {type(error).__name__}: {error}"
            ) from error
    takes_data = any(field.name == DATA_CONFIG for field in dataclasses.fields(made))
    return parse_section(made, plugin.section, values, **({DATA_CONFIG: data} if takes_data else {}))
