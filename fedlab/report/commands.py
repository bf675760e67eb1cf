"""Commands that repeat or continue a run, quoted for a shell."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from fedlab.config.schema import CORE_SECTIONS, knobs, preset_names, read_preset
from fedlab.runs.result import Result

# In the preset's name, in --seed, and what changes nothing of what a run finds.
ELSEWHERE = frozenset({"name", "seed", "run_dir", "pretrained", "keep_start"})


def repeat_from_config(result: Result) -> str:
    """Return the command that repeats a run from its own table of knobs."""
    return f"fedlab run {shlex.quote(str(result.directory / 'config.toml'))}"


def resume(result: Result) -> str:
    """Return the command that continues a run."""
    return f"fedlab resume {shlex.quote(str(result.directory))}"


def repeat_from_preset(result: Result, sections: Mapping[str, type], preset: str = "") -> str:
    """Return the command that repeats a run anywhere: its preset and what differs from it; "" without such a preset.

    Parameters
    ----------
    sections
        Sections of options by prefix, from which an option's default is known.
    preset
        Its name, or path, where the run itself is called otherwise.
    """
    name = preset or str(result.config.get("name", ""))
    if name not in preset_names() and not (preset.endswith(".toml") and Path(preset).is_file()):
        return ""
    _, table = read_preset(name)
    known = knobs({**sections, **CORE_SECTIONS})
    if not known.keys() >= result.config.keys():
        return ""  # of another fedlab
    usual = {**{key: knob.default for key, knob in known.items()}, **table}
    changed = [
        shlex.quote(f"{key}={str(value).lower() if isinstance(value, bool) else value}")
        for key, value in result.config.items()
        if key not in ELSEWHERE and value != usual[key]
    ]
    return " ".join(["fedlab run", shlex.quote(name), *changed, f"--seed {result.config['seed']}"])
