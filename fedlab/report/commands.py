"""Commands that repeat or continue a run, quoted for a shell."""

from __future__ import annotations

import shlex
from pathlib import Path

from fedlab.config.engine_options import SERVE_TIMEOUT
from fedlab.config.presets import is_file_name, read_preset
from fedlab.config.run_options import RunConfig
from fedlab.config.sections import section_fields
from fedlab.errors import ConfigError
from fedlab.registry import load_config
from fedlab.runs.result import Result

# In the preset's name, in --seed, and what changes nothing of what a run finds.
ELSEWHERE = frozenset({"name", "seed", "checkpoint.pretrain_cache", "checkpoint.keep_initial"})


def repeat(result: Result) -> str:
    """Return the command that a run itself recorded, where only that can repeat it; else ""."""
    return str(result.manifest.get("command", ""))


def is_served(result: Result) -> bool:
    """Return True if a run waits for clients of other processes: a section of its engine says where they find it."""
    return "grpc.address" in result.config


def condition(result: Result) -> str:
    """Return where, or with whom, the command of :func:`repeat_from_preset` gives the same run again."""
    own = {
        str(value).partition(":")[0]: None
        for value in (result.config.get(kind, "") for kind in ("workload", "strategy", "engine"))
        if ":" in str(value)
    }
    where = f"where Python finds {' and '.join(own)}" if own else ""
    return ", ".join(filter(None, (where, "for the same clients to join" if is_served(result) else ""))) or "anywhere"


def _begin(result: Result) -> str:
    return "fedlab serve" if is_served(result) else "fedlab run"


def repeat_from_config(result: Result) -> str:
    """Return the command that repeats a run from its own table of options."""
    return f"{_begin(result)} {shlex.quote(str(result.directory / 'config.toml'))}"


def resume(result: Result) -> str:
    """Return the command that continues a run."""
    return f"fedlab resume {shlex.quote(str(result.directory))}"


def report(result: Result) -> str:
    """Return the command that writes the page of a run again, with what its models predict for its clients."""
    return f"fedlab report {shlex.quote(str(result.directory))}"


def repeat_from_preset(result: Result, preset: str = "") -> str:
    """Return the command that repeats a run: its preset and what differs from it; "" without such a preset.

    Parameters
    ----------
    preset
        Its name, or path, where the run itself is called otherwise.
    """
    name = preset or str(result.config.get("name", ""))
    if not name or (is_file_name(name) and not Path(name).is_file()):
        return ""
    chosen = {kind: result.config[kind] for kind in ("workload", "strategy", "engine")}
    try:
        usual = load_config(name, chosen).options()
        if not usual.keys() >= result.config.keys():  # an option may choose a plug-in that has options of its own
            changed = {key: value for key, value in result.config.items() if usual.get(key, value) != value}
            usual = {**load_config(name, {**chosen, **changed}).options(), **usual}
        own = read_preset(name)[1]
    except ConfigError:
        return ""  # no such preset, or of another fedlab
    if not usual.keys() >= result.config.keys():
        return ""
    usual |= {kind: str(own.get(kind, section_fields(RunConfig)[kind].default)) for kind in chosen}
    if is_served(result):  # what `fedlab serve` sets by itself
        usual |= {"engine": result.config["engine"], "comm.connect_timeout": SERVE_TIMEOUT}
    words = [
        shlex.quote(f"{key}={str(value).lower() if isinstance(value, bool) else value}")
        for key, value in result.config.items()
        if key not in ELSEWHERE and value != usual[key]
    ]
    return " ".join([_begin(result), shlex.quote(name), *words, f"--seed {result.config['seed']}"])
