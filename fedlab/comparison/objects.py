"""A comparison asked for with objects, as `fedlab.run` takes them: the same by names that plans and cells know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedlab.comparison.spec import SEPARATOR
from fedlab.config.presets import is_file_name
from fedlab.config.schema import Config
from fedlab.errors import ConfigError
from fedlab.plugins import exists_here_only, reference_to, section_name
from fedlab.registry import preset_options

SEPARATORS = {":", SEPARATOR, "\n"}  # that no label may hold
Strategies = str | Sequence[object] | Mapping[str, object]
Preset = str | Path | Mapping[str, Any]


def named_preset(preset: Preset, workload: object) -> tuple[str | Mapping[str, Any], str]:
    """Return a preset that names its workload, and what it is called.

    Parameters
    ----------
    preset
        Name, path or mapping of options; empty: none.
    workload
        In place of the preset's, a name, import path or object; None: the preset's.

    Raises
    ------
    ConfigError
        When there is no such preset.
    """
    written = preset if isinstance(preset, Mapping) else str(preset)
    if workload is None and isinstance(written, str):
        return written, folder_name(written)
    chosen: dict[str, Any] = {}
    if workload is not None:
        reference, values = (workload, {}) if isinstance(workload, str) else reference_to("workload", workload)
        chosen = {"workload": reference, **values}
    table = {**preset_options(written), **chosen}
    name = str(table.pop("name", "")) if isinstance(written, Mapping) else folder_name(written)
    called = str(table.get("workload", ""))
    return table, name or (section_name(called) if ":" in called else called) or "comparison"


def folder_name(preset: str) -> str:
    """Return the name of a comparison's folder by a preset's name or path; for an import path it is that of its runs.

    >>> folder_name("dualadapt-digits"), folder_name("mine/short.toml")
    ('dualadapt-digits', 'short')
    """
    return Path(preset).stem if is_file_name(preset) or ":" not in preset else str(preset_options(preset)["name"])


def named_strategies(strategies: Strategies) -> str | list[str]:
    """Return strategies as text; those of a mapping have its keys as labels.

    Raises
    ------
    ConfigError
        When a label holds what stands between the parts of such a text.
    """
    if isinstance(strategies, str):
        return strategies
    if not isinstance(strategies, Mapping):
        return list(map(_name, strategies))
    for label in strategies:
        if wrong := set(str(label)) & SEPARATORS:
            raise ConfigError(
                f"the label {label!r} holds {min(wrong)!r}, which stands between variants or their options; use "
                "another sign, for example a comma"
            )
    return [f"{label}={_name(each)}" if label else _name(each) for label, each in strategies.items()]


def _name(strategy: object) -> str:
    return strategy if isinstance(strategy, str) else reference_to("strategy", strategy)[0]


def objects_of_this_process(config: Config) -> list[str]:
    """Return what a run uses that no other process can find, each with its kind."""
    return [
        f"{kind} {section_name(plugin.reference)}"
        for kind, plugin in config.plugins.items()
        if exists_here_only(plugin.reference)
    ]


def is_of_this_process(config: Config) -> bool:
    """Return True if a run uses an object that no other process can find."""
    return bool(objects_of_this_process(config))
