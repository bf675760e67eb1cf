"""The tables of what a run chooses by name, and plug-ins: presets, workloads, strategies, aggregation rules, engines.

A row names a module by its path, so that nothing is imported before a run uses it. Something of a user's own is named
by import path, ``pkg.module:Name``, or by the short name of an entry point in one of the groups ``fedlab.workloads``,
``fedlab.strategies``, ``fedlab.aggregations``, ``fedlab.engines`` and ``fedlab.presets``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from fedlab.config.presets import flatten, is_file_name, parse_preset, preset_names, read_preset
from fedlab.config.resolve import build_config, check_keys, put_over
from fedlab.config.run_options import RunConfig
from fedlab.config.schema import COMMON_SECTIONS, Config, Plugin
from fedlab.config.sections import Overrides, Value, section_fields
from fedlab.errors import ConfigError, suggest
from fedlab.plugins import add_plugin_folder, entry_points, load_module, load_object, section_name
from fedlab.references import load_reference
from fedlab.runs.manifest import check_is_ours
from fedlab.strategies.ablations import ABLATIONS, expand_ablation
from fedlab.strategies.client_adaptation import ADAPT, OFF
from fedlab.tables import ADAPTATIONS, AGGREGATIONS, ENGINES, STRATEGIES, WORKLOADS, Row


@dataclass(frozen=True)
class Kind:
    """One kind of plug-in.

    Attributes
    ----------
    table
        The rows of this package.
    group
        The group of entry points.
    wrap
        Path of the function that makes a spec of what was found, or raises ConfigError.
    """

    table: Mapping[str, Row]
    group: str
    wrap: str


KINDS: Mapping[str, Kind] = {
    "workload": Kind(WORKLOADS, "fedlab.workloads", "fedlab.workload:spec_of"),
    "strategy": Kind(STRATEGIES, "fedlab.strategies", "fedlab.strategies.fedavg:spec_of"),
    "aggregation": Kind(AGGREGATIONS, "fedlab.aggregations", "fedlab.strategies.aggregation.rule:spec_of"),
    "adaptation": Kind(ADAPTATIONS, "fedlab.adaptations", "fedlab.strategies.client_adaptation.spec:spec_of"),
    "engine": Kind(ENGINES, "fedlab.engines", "fedlab.engines.spec:spec_of"),
}
PRESET_GROUP = "fedlab.presets"
CHOICES = {"aggregation": "aggregation", "adaptation": ADAPT}  # kind -> option of a strategy that names one


# --- finding ---


def find(kind: str, reference: str) -> Plugin:
    """Find a workload, strategy, aggregation rule or engine by name or import path.

    Raises
    ------
    ConfigError
        When there is none, when its module cannot be imported, or when it lacks something of its protocol.
    """
    if not reference:
        raise ConfigError(f"option {kind!r} is empty; name one of {', '.join(names(kind))}")
    if ":" in reference:  # looked up anew each time: a notebook may have defined it again
        return _plugin(kind, reference, reference, "")
    return _named(kind, reference)


@lru_cache(maxsize=256)
def _named(kind: str, name: str) -> Plugin:
    table = KINDS[kind].table
    return _plugin(kind, name, table[name].path if name in table else _entry_point(kind, name), name)


def _plugin(kind: str, reference: str, path: str, section: str) -> Plugin:
    what = f"{kind} {reference!r}"
    spec = load_reference(KINDS[kind].wrap)(load_object(path, what), what)
    return Plugin(reference, str(getattr(spec, "name", "")) or section or section_name(reference), spec)


def names(kind: str) -> list[str]:
    """Return the names of one kind, those of other packages last."""
    return [*KINDS[kind].table, *sorted(entry_points(KINDS[kind].group).keys() - KINDS[kind].table.keys())]


def ablation_names() -> list[str]:
    """Return the names of strategies that stand for another one with changed options."""
    return list(ABLATIONS)


def summary(kind: str, name: str) -> str:
    """Return one line about something that has a name; for a plug-in, the value of its entry point."""
    row = KINDS[kind].table.get(name)
    return row.summary if row else f"plug-in {entry_points(KINDS[kind].group)[name][0].value}"


def preset_plugins() -> dict[str, str]:
    """Return where the presets of other packages are, by name: ``pkg:file.toml`` or ``pkg.module:MAPPING``."""
    return {name: points[0].value for name, points in entry_points(PRESET_GROUP).items()}


def read_any_preset(preset: str | Mapping[str, Any], where: str = "the mapping") -> tuple[str, dict[str, Value]]:
    """Return description and options of a preset.

    Parameters
    ----------
    preset
        A name, the path of a TOML file, an import path (``pkg.module:MAPPING``, or ``pkg:file.toml`` for a file in the
        package's folder), or a mapping of options by dotted key or in nested mappings.
    where
        What a mapping is called in messages.

    Raises
    ------
    ConfigError
        When there is no such preset, or it is none.
    """
    if isinstance(preset, Mapping):
        table = dict(preset)
        return str(table.pop("description", "")), flatten(table, where)
    if is_file_name(preset) and Path(preset).is_file():
        add_plugin_folder(Path(preset).resolve().parent)
        return read_preset(preset)
    path = preset if ":" in preset else preset_plugins().get(preset, "")
    if not path or preset in preset_names():
        return read_preset(preset, sorted(preset_plugins()))
    _check_single("preset", preset, entry_points(PRESET_GROUP).get(preset, []))
    # my_task:PRESET makes runs/my_task-0
    name = preset.removesuffix(":PRESET").removesuffix(".toml").rpartition(":")[2].rpartition(".")[2]
    module, _, attribute = path.partition(":")
    if is_file_name(attribute):
        folder = Path(load_module(module, f"preset {preset!r}").__file__ or "").parent
        description, values = read_preset(str(folder / attribute))
    else:
        found = load_object(path, f"preset {preset!r}")
        if not isinstance(found, Mapping):
            raise ConfigError(f"preset {preset!r} is a {type(found).__name__}; a mapping of options is expected")
        description, values = read_any_preset(found, f"preset {preset!r}")
    return description, {"name": name.lower(), **values}


def _entry_point(kind: str, name: str) -> str:
    """The import path behind a plug-in's short name."""
    points = entry_points(KINDS[kind].group).get(name, [])
    _check_single(kind, name, points)
    if not points:
        others = ablation_names() if kind == "strategy" else []
        raise ConfigError(
            f"unknown {kind} {name!r}; {suggest(name, [*names(kind), *others])} Something of your own is named by its "
            "import path, pkg.module:Name"
        )
    return points[0].value


def _check_single(kind: str, name: str, points: Sequence[EntryPoint]) -> None:
    if len(points) > 1:
        places = " and ".join(sorted(f"{point.dist.name if point.dist else '?'} ({point.value})" for point in points))
        raise ConfigError(
            f"{kind} {name!r} is the name of two plug-ins, of {places}; name the one that you want by its import path"
        )


# --- configuration ---


def merge(preset: str | Mapping[str, Any], overrides: Overrides) -> dict[str, Value]:
    """Return the options of a preset with overrides over them, every key checked.

    A strategy's defaults of other options stand below a preset that is made for this strategy, and above one that is
    made for another; a user's overrides stand above both.

    Parameters
    ----------
    preset
        As of :func:`read_any_preset`.

    Raises
    ------
    ConfigError
        When there is no such preset, or an option is unknown or has no effect.
    """
    table = preset_options(preset)
    base, given = expand_ablation(_with_strategy_defaults(table, overrides), overrides)
    merged = put_over(base, given)
    merged["name"] = merged.get("name") or base.get("name", "")
    plugins = plugins_of(merged)
    check_keys(base, given, plugins, all_sections, lambda key: settings_that_use(key, plugins["strategy"]))
    return merged


def _with_strategy_defaults(table: Overrides, overrides: Overrides) -> Overrides:
    """A preset's options with the defaults of the strategy that is asked for, below or above them."""
    asked, meant = _base_strategy({**table, **overrides}), _base_strategy(table)
    defaults: Overrides = find("strategy", asked).spec.defaults
    return put_over(defaults, table) if asked == meant else put_over(table, defaults)


def _base_strategy(values: Overrides) -> str:
    """The strategy that options name, the one behind it where that is an ablation."""
    named = str(values.get("strategy", section_fields(RunConfig)["strategy"].default))
    return ABLATIONS[named].strategy if named in ABLATIONS else named


def preset_options(preset: str | Mapping[str, Any]) -> dict[str, Value]:
    """Return the options that a preset sets itself; an empty name is the preset that sets none."""
    return read_any_preset(preset)[1] if preset else {}


def plugins_of(values: Overrides) -> dict[str, Plugin]:
    """Return what merged options choose: workload, strategy, engine, and the rule where the strategy has one.

    Raises
    ------
    ConfigError
        When one of them does not exist.
    """
    fields = section_fields(RunConfig)
    found = {
        kind: find(kind, str(values.get(kind, fields[kind].default))) for kind in ("workload", "strategy", "engine")
    }
    strategy = found["strategy"]
    rule = section_fields(strategy.spec.options).get(CHOICES["aggregation"])
    if rule is not None:
        found["aggregation"] = find("aggregation", str(values.get(f"{strategy.section}.aggregation", rule.default)))
    elif strategy.spec.aggregation is not None:
        found["aggregation"] = Plugin(strategy.reference, strategy.section, strategy.spec.aggregation)
    return {**found, **_adaptation(strategy, values)}


def _adaptation(strategy: Plugin, values: Overrides) -> dict[str, Plugin]:
    """Return the method by which clients adapt after the last round, and the strategy with it; nothing without one."""
    if strategy.spec.adaptation is not None:
        return {"adaptation": Plugin(strategy.reference, strategy.section, strategy.spec.adaptation)}
    option = section_fields(strategy.spec.options).get(ADAPT)
    chosen = "" if option is None else str(values.get(f"{strategy.section}.{ADAPT}", option.default))
    if option is None or chosen == OFF:
        return {}
    return {"strategy": _adapting(strategy.reference, chosen), "adaptation": find("adaptation", chosen)}


@lru_cache(maxsize=64)
def _adapting(strategy: str, method: str) -> Plugin:
    """Return a strategy whose clients adapt; one object for the same names, so that plug-ins can be compared."""
    plugin = find("strategy", strategy)
    make = load_reference("fedlab.strategies.client_adaptation.wrapper:with_adaptation")
    return Plugin(plugin.reference, plugin.section, make(plugin.spec, find("adaptation", method).spec))


def all_sections() -> dict[str, type]:
    """Return every section that exists by its prefix, those of plug-ins with a name included."""
    found: dict[str, type] = dict(COMMON_SECTIONS)
    for kind in KINDS:
        for plugin in _known(kind).values():
            found.setdefault(plugin.section, plugin.spec.options)
    return found


def settings_that_use(key: str, strategy: Plugin) -> list[str]:
    """Return the settings with which an option of a section of its own has an effect, by a run's strategy.

    >>> settings_that_use("fedadam.tau", find("strategy", "fedprox"))
    ['strategy=fedadam', 'fedprox.aggregation=fedadam']
    """
    section, _, option = key.partition(".")
    own = section_fields(strategy.spec.options)
    chosen_by = {kind: kind for kind in ("workload", "strategy", "engine")}
    chosen_by |= {kind: f"{strategy.section}.{name}" for kind, name in CHOICES.items() if name in own}
    return [
        f"{setting}={name}"
        for kind, setting in chosen_by.items()
        for name, plugin in _known(kind).items()
        if plugin.section == section and option in section_fields(plugin.spec.options)
    ]


def strategies_that_use(option: str) -> list[str]:
    """Return the strategies on which an option of the sections ``server`` and ``client`` has an effect."""
    return [name for name, plugin in _known("strategy").items() if option not in plugin.spec.ignores]


def _known(kind: str) -> dict[str, Plugin]:
    """Return what has a name, without the plug-ins that cannot be imported."""
    found: dict[str, Plugin] = {}
    for name in names(kind):
        with suppress(ConfigError):
            found[name] = find(kind, name)
    return found


def load_run_config(file: Path) -> Config:
    """Return the configuration of a run directory, its ``config.toml``.

    Unlike a preset's folder, a run directory is not searched for the modules that its options name: it may come from
    somebody else.

    Raises
    ------
    ConfigError
        As :func:`load_config`.
    RunError
        When the run is none of a workload and a strategy.
    """
    check_is_ours(file.parent)
    return load_config(read_preset(str(file))[1])


def load_config(preset: str | Mapping[str, Any], overrides: Overrides | None = None, client_folder: str = "") -> Config:
    """Resolve a preset and overrides into the typed configuration of a run.

    Raises
    ------
    ConfigError
        With a sentence that says what came, what was expected and what to do.
    """
    merged = merge(preset, overrides or {})
    return build_config(merged, plugins_of(merged), client_folder)


def app_config(run_config: Mapping[str, Any]) -> tuple[str, str]:
    """Return ``preset`` and ``overrides`` of Flower's run config, with which an app was started.

    Raises
    ------
    ConfigError
        When the run config has neither: the app was started without a configuration of ours.
    """
    if not {"preset", "overrides"} & run_config.keys():
        raise ConfigError(
            'Flower\'s run config names no preset; in pyproject.toml write preset = "dualadapt-digits" under '
            "[tool.flwr.app.config], or start with `flwr run . --run-config 'preset=\"dualadapt-digits\"'`"
        )
    return str(run_config.get("preset", "")), str(run_config.get("overrides", ""))


def config_from_text(preset: str, overrides: str, settings: tuple[tuple[str, Value], ...] = ()) -> Config:
    """Resolve what an app finds in Flower's run config, once a process for each text.

    Parameters
    ----------
    preset
        Name of a preset; empty: the defaults.
    overrides
        TOML text of options that go over it.
    settings
        Options of this machine that go over both; ``data.client_folder`` among them is a client's own data.

    Raises
    ------
    ConfigError
        As :func:`load_config`.
    """
    return _config_from_text(preset, overrides, settings)


def refresh(config: Config) -> None:
    """Resolve every text anew if something that a run uses was defined again, as in a notebook; called once a run."""
    if plugins_of(config.options()) != config.plugins:
        _config_from_text.cache_clear()


@lru_cache(maxsize=64)
def _config_from_text(preset: str, overrides: str, settings: tuple[tuple[str, Value], ...]) -> Config:
    own = dict(settings)
    folder = str(own.pop("data.client_folder", ""))
    return load_config(preset, {**parse_preset(overrides, "option 'overrides'")[1], **own}, folder)


def forget() -> None:
    """Drop everything that was found or resolved so far, for tests that change the tables."""
    _named.cache_clear()
    _adapting.cache_clear()
    _config_from_text.cache_clear()
