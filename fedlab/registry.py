"""The tables of what a run chooses by name, and plug-ins: presets, workloads, strategies, aggregation rules, engines.

A row names a module by its path, so that nothing is imported before a run uses it. Something of a user's own is named
by import path, ``pkg.module:Name``, or by the short name of an entry point in one of the groups ``fedlab.workloads``,
``fedlab.strategies``, ``fedlab.aggregations``, ``fedlab.engines`` and ``fedlab.presets``.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, is_dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, cast

from fedlab.config.presets import flatten, is_file_name, parse_preset, preset_names, read_preset
from fedlab.config.resolve import active_sections, build_config, check_keys
from fedlab.config.schema import COMMON_SECTIONS, Config, Plugin, RunConfig
from fedlab.config.sections import Overrides, Value, section_fields
from fedlab.errors import ConfigError, suggest
from fedlab.strategies.ablations import ABLATIONS, expand_ablation

LIVE = "live:"  # before the name of an object that only this process has


@dataclass(frozen=True)
class Row:
    """One line of a table: where the spec is, as ``module:attribute``, and what it is."""

    path: str
    summary: str


WORKLOADS: Mapping[str, Row] = {
    "camvid": Row(
        "fedlab.workloads.camvid:SPEC",
        "semantic segmentation of street views: labeled day drives on the server, others on clients",
    ),
    "digits": Row(
        "fedlab.workloads.digits:SPEC",
        "digit domains: a labeled source on the server, unlabeled targets on the clients",
    ),
    "fewshot": Row(
        "fedlab.workloads.fewshot:SPEC",
        "few-shot transfer: labeled base classes on the server, unlabeled targets on the clients",
    ),
    "generation": Row(
        "fedlab.workloads.generation:SPEC", "image generation without labels: a diffusion model or a score network"
    ),
    "images": Row(
        "fedlab.workloads.images:SPEC",
        "images with classes (Omniglot, CIFAR-10): label-skewed parts of one set on the clients",
    ),
    "molecules": Row(
        "fedlab.workloads.molecules:SPEC",
        "generation of molecular graphs without labels, divided by scaffold, size or at random",
    ),
    "office": Row(
        "fedlab.workloads.office:SPEC",
        "objects in four collections (Office-Caltech10, SURF): one labeled, three unlabeled",
    ),
    "pacs": Row(
        "fedlab.workloads.pacs:SPEC",
        "objects painted, drawn, photographed and sketched (PACS): one style labeled, three not",
    ),
}

_RULES = "fedlab.strategies.aggregation"
AGGREGATIONS: Mapping[str, Row] = {
    "fedavg": Row(f"{_RULES}.server_optimizers:FEDAVG", "clients train on their labels, the server averages (McMahan 2017)"),
    "fedavgm": Row(f"{_RULES}.server_optimizers:FEDAVGM", "FedAvg with momentum on the server (Hsu 2019)"),
    "fedadagrad": Row(f"{_RULES}.server_optimizers:FEDADAGRAD", "FedAvg with Adagrad on the server (Reddi 2021)"),
    "fedadam": Row(f"{_RULES}.server_optimizers:FEDADAM", "FedAvg with Adam on the server (Reddi 2021)"),
    "fedyogi": Row(f"{_RULES}.server_optimizers:FEDYOGI", "FedAvg with Yogi on the server (Reddi 2021)"),
    "fedmedian": Row(f"{_RULES}.robust:FEDMEDIAN", "the median of each weight over clients (Yin 2018)"),
    "fedtrimmedavg": Row(f"{_RULES}.robust:FEDTRIMMEDAVG", "the mean of each weight without its extremes (Yin 2018)"),
    "krum": Row(f"{_RULES}.robust:KRUM", "the one model that is nearest to the others (Blanchard 2017)"),
    "multikrum": Row(f"{_RULES}.robust:MULTIKRUM", "the mean of the models nearest to the others (Blanchard 2017)"),
    "bulyan": Row(f"{_RULES}.robust:BULYAN", "trimmed mean of the models that Krum selects (El Mhamdi 2018)"),
    "qfedavg": Row(f"{_RULES}.fairness:QFEDAVG", "clients with a high loss weigh more (Li 2020)"),
    "dp_fixed": Row(f"{_RULES}.privacy:DP_FIXED", "client-level differential privacy, fixed clipping (McMahan 2018)"),
    "dp_adaptive": Row(
        f"{_RULES}.privacy:DP_ADAPTIVE", "client-level differential privacy, adaptive clipping (Andrew 2021)"
    ),
}

STRATEGIES: Mapping[str, Row] = {
    "dualadapt": Row(
        "fedlab.strategies.dualadapt:SPEC",
        "adapts G, F_g on the server to heads and mixtures that clients fit on unlabeled data (Yao 2022)",
    ),
    "source_only": Row(
        "fedlab.strategies.source_only:SPEC", "the server trains on its source, no adaptation: the lower bound"
    ),
    "adabn": Row(
        "fedlab.strategies.adabn:SPEC", "source only, with batch-norm statistics of each client's own (Li 2016)"
    ),
    "self_training": Row(
        "fedlab.strategies.self_training:SPEC",
        "unlabeled clients train on confident pseudo-labels, the server averages",
    ),
    "fed_mcd": Row(
        "fedlab.strategies.fed_mcd:SPEC",
        "MCD's three steps naively federated: source on the server, discrepancy on clients (Saito 2018)",
    ),
    "fed_dann": Row(
        "fedlab.strategies.fed_dann:SPEC",
        "clients train features that a domain discriminator cannot tell from the source's (Ganin 2016)",
    ),
    "oracle": Row(
        "fedlab.strategies.oracle:SPEC", "source steps in turn with clients that have labels: the upper bound"
    ),
    **AGGREGATIONS,
    "fedprox": Row("fedlab.strategies.fedprox:SPEC", "FedAvg with a proximal term on the client (Li 2020)"),
    "fedbn": Row("fedlab.strategies.fedbn:SPEC", "FedAvg, each client keeps its own batch norms (Li 2021)"),
    "fedparts": Row(
        "fedlab.strategies.fedparts:SPEC",
        "FedAvg, each client sends one part of its model a round, in turns (after FedDiffuse 2024)",
    ),
    "scaffold": Row(
        "fedlab.strategies.scaffold:SPEC", "FedAvg with control variates against client drift (Karimireddy 2020)"
    ),
    "fednova": Row(
        "fedlab.strategies.fednova:SPEC", "FedAvg for clients that take different numbers of steps (Wang 2020)"
    ),
    "startup": Row(
        "fedlab.strategies.startup:SPEC", "a teacher of the base labels the clients' images softly (Phoo 2021)"
    ),
}

ENGINES: Mapping[str, Row] = {
    "inprocess": Row("fedlab.engines:INPROCESS", "this process; a network that is a function call (default)"),
    "ray": Row("fedlab.engines:RAY", "Flower's simulation: clients in Ray actors, behind a private SuperLink"),
    "grpc": Row("fedlab.engines:GRPC", "real clients over gRPC: `fedlab serve` here, `fedlab join` there"),
}


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
    "engine": Kind(ENGINES, "fedlab.engines", "fedlab.engines.spec:spec_of"),
}
PRESET_GROUP = "fedlab.presets"
PLUGIN_PATH = "FEDLAB_PLUGIN_PATH"  # environment variable: folders of modules that are not installed

_live: dict[str, Any] = {}


# --- finding ---


@lru_cache(maxsize=256)
def find(kind: str, reference: str) -> Plugin:
    """Find a workload, strategy, aggregation rule or engine by name or import path.

    Raises
    ------
    ConfigError
        When there is none, when its module cannot be imported, or when it lacks something of its protocol.
    """
    if not reference:
        raise ConfigError(f"option {kind!r} is empty; name one of {', '.join(names(kind))}")
    table = KINDS[kind].table
    if reference in table:
        path, section = table[reference].path, reference
    elif reference.startswith(LIVE):
        path, section = reference, reference.removeprefix(LIVE)
    elif ":" in reference:
        path, section = reference, ""
    else:
        path, section = _entry_point(kind, reference), reference
    found = load_object(path, f"{kind} {reference!r}")
    spec = _import(KINDS[kind].wrap)(found, f"{kind} {reference!r}", reference)
    return Plugin(reference, getattr(spec, "name", "") or section or _section_name(reference), spec)


def names(kind: str) -> list[str]:
    """Return the names of one kind, those of other packages last."""
    return [*KINDS[kind].table, *sorted(_entry_points(KINDS[kind].group).keys() - KINDS[kind].table.keys())]


def summary(kind: str, name: str) -> str:
    """Return one line about something that has a name; for a plug-in, the value of its entry point."""
    row = KINDS[kind].table.get(name)
    return row.summary if row else f"plug-in {_entry_points(KINDS[kind].group)[name][0].value}"


def preset_plugins() -> dict[str, str]:
    """Return where the presets of other packages are, by name: ``pkg:file.toml`` or ``pkg.module:MAPPING``."""
    return {name: points[0].value for name, points in _entry_points(PRESET_GROUP).items()}


def read_any_preset(preset: str | Mapping[str, Any]) -> tuple[str, dict[str, Value]]:
    """Return description and options of a preset.

    Parameters
    ----------
    preset
        A name, the path of a TOML file, an import path (``pkg.module:MAPPING``, or ``pkg:file.toml`` for a file in the
        package's folder), or a mapping of options by dotted key or in nested mappings.

    Raises
    ------
    ConfigError
        When there is no such preset, or it is none.
    """
    if isinstance(preset, Mapping):
        table = dict(preset)
        return str(table.pop("description", "")), flatten(table, "the mapping")
    if is_file_name(preset) and Path(preset).is_file():
        add_plugin_folder(Path(preset).resolve().parent)
        return read_preset(preset)
    path = preset if ":" in preset else preset_plugins().get(preset, "")
    if not path or preset in preset_names():
        return read_preset(preset, sorted(preset_plugins()))
    name = preset.rpartition(":")[2].removesuffix(".toml")
    module, _, attribute = path.partition(":")
    if is_file_name(attribute):
        folder = Path(_module(module, f"preset {preset!r}").__file__ or "").parent
        description, values = read_preset(str(folder / attribute))
    else:
        found = load_object(path, f"preset {preset!r}")
        if not isinstance(found, Mapping):
            raise ConfigError(f"preset {preset!r} is a {type(found).__name__}; a mapping of options is expected")
        description, values = read_any_preset(found)
    return description, {"name": name.lower(), **values}


def add_plugin_folder(folder: Path) -> None:
    """Let modules in a folder be found, in this process and those that it starts, behind all that is installed."""
    known = [path for path in os.environ.get(PLUGIN_PATH, "").split(os.pathsep) if path]
    if str(folder) not in known:
        os.environ[PLUGIN_PATH] = os.pathsep.join([*known, str(folder)])
    _extend_path()


def _extend_path() -> None:
    """Put the current folder and the known folders of plug-ins at the end of the search path."""
    for folder in (os.getcwd(), *os.environ.get(PLUGIN_PATH, "").split(os.pathsep)):
        if folder and folder not in sys.path:
            sys.path.append(folder)


def _entry_points(group: str) -> dict[str, list[metadata.EntryPoint]]:
    found: dict[str, list[metadata.EntryPoint]] = {}
    for point in metadata.entry_points(group=group):
        if point.value not in [known.value for known in found.get(point.name, [])]:
            found.setdefault(point.name, []).append(point)
    return found


def _entry_point(kind: str, name: str) -> str:
    """The import path behind a plug-in's short name."""
    points = _entry_points(KINDS[kind].group).get(name, [])
    if len(points) > 1:
        places = " and ".join(f"{point.dist.name if point.dist else '?'} ({point.value})" for point in points)
        raise ConfigError(
            f"{kind} {name!r} is the name of two plug-ins, of {places}; name the one that you want by its import path"
        )
    if not points:
        others = list(ABLATIONS) if kind == "strategy" else []
        raise ConfigError(
            f"unknown {kind} {name!r}; {suggest(name, [*names(kind), *others])} Something of your own is named by its "
            "import path, pkg.module:Name"
        )
    return points[0].value


def load_object(path: str, what: str) -> Any:
    """Import ``pkg.module:Name``; ``what`` says in messages what it is for.

    Raises
    ------
    ConfigError
        When the module is not installed here, raises as it is imported, or has no such name.
    """
    if path.startswith(LIVE):
        if path not in _live:
            raise ConfigError(
                f"{what} was an object of another process, and cannot be found again; define it in a module and name "
                "it by its import path, pkg.module:Name"
            )
        return _live[path]
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise ConfigError(f"{what} is no import path; write pkg.module:Name")
    module = _module(module_name, what)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [name for name in vars(module) if not name.startswith("_")]
            raise ConfigError(f"{what}: module {module_name!r} has no {attribute!r}; {suggest(attribute, public)}")
        found = getattr(found, part)
    return found


def _module(name: str, what: str) -> Any:
    _extend_path()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name == missing or name.startswith(f"{missing}."):
            raise ConfigError(
                f"{what}: there is no module {missing!r} on this machine; install the package that it belongs to "
                "here too (pip install), or set PYTHONPATH to the folder that it is in"
            ) from None
        raise ConfigError(f"{what}: module {name!r} needs {missing!r}, which is not installed here") from None
    except Exception as error:
        raise ConfigError(f"{what}: importing {name!r} raised {type(error).__name__}: {error}") from error


def _import(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def _section_name(reference: str) -> str:
    """The prefix of options of something named by import path: its own name in snake case, or its module's for SPEC."""
    module, _, name = reference.partition(":")
    if name.isupper():
        return module.rpartition(".")[2]
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.rpartition(".")[2]).lower()


# --- objects of this process ---


def reference_to(kind: str, found: object) -> tuple[str, dict[str, Value]]:
    """Return how a run can name an object, and the options that make it again: for ``fedlab.run(workload=MyTask())``.

    A dataclass with plain fields is named by the import path of its class, anything that is a variable of a module by
    that; what is left is known to this process alone.
    """
    cls = type(found)
    if is_dataclass(found) and _is_at(cls.__module__, cls.__qualname__, cls):
        reference = f"{cls.__module__}:{cls.__qualname__}"
        values = {name: getattr(found, name) for name in section_fields(cast(type[Any], cls))}
        if kind == "workload" and all(isinstance(value, bool | int | float | str) for value in values.values()):
            section = find(kind, reference).section
            return reference, {f"{section}.{name}": value for name, value in values.items()}
    for module_name, module in list(sys.modules.items()):
        for name, value in list(vars(module).items()) if module is not None and hasattr(module, "__dict__") else ():
            if value is found and _is_at(module_name, name, found):
                return f"{module_name}:{name}", {}
    name = _section_name(f":{getattr(found, '__name__', cls.__name__)}")
    reference = f"{LIVE}{name}"
    _live[reference] = found
    find.cache_clear()
    return reference, {}


def _is_at(module: str, path: str, found: object) -> bool:
    place: Any = sys.modules.get(module)
    for part in path.split("."):
        place = getattr(place, part, None)
    return place is found


# --- configuration ---


def merge(preset: str | Mapping[str, Any], overrides: Overrides) -> dict[str, Value]:
    """Return the options of a preset with overrides over them, every key checked.

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
    base, given = expand_ablation(table, overrides)
    merged = {**base, **given}
    merged["name"] = merged.get("name") or base.get("name", "")
    check_keys(base, given, plugins_of(merged), all_sections)
    return merged


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
    rule = section_fields(strategy.spec.options).get("aggregation")
    if rule is not None:
        found["aggregation"] = find("aggregation", str(values.get(f"{strategy.section}.aggregation", rule.default)))
    elif strategy.spec.aggregation is not None:
        found["aggregation"] = Plugin(strategy.reference, strategy.section, strategy.spec.aggregation)
    return found


def all_sections() -> dict[str, type]:
    """Return every section that exists by its prefix, those of plug-ins with a name included."""
    found: dict[str, type] = dict(COMMON_SECTIONS)
    for kind in KINDS:
        for name in names(kind):
            plugin = find(kind, name)
            found.setdefault(plugin.section, plugin.spec.options)
    return found


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
            "Flower's run config names no preset; in pyproject.toml write preset = \"dualadapt-digits\" under "
            "[tool.flwr.app.config], or start with `flwr run . --run-config 'preset=\"dualadapt-digits\"'`"
        )
    return str(run_config.get("preset", "")), str(run_config.get("overrides", ""))


@lru_cache(maxsize=64)
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
    own = dict(settings)
    folder = str(own.pop("data.client_folder", ""))
    return load_config(preset, {**parse_preset(overrides, "option 'overrides'")[1], **own}, folder)


def section_types(plugins: Iterable[Plugin]) -> dict[str, type]:
    """Return the sections of some plug-ins by prefix."""
    return active_sections({str(number): plugin for number, plugin in enumerate(plugins)})
