"""How to do a run again: commands that a shell takes as they stand."""

from __future__ import annotations

import shlex

from fedlab.config import CORE_SECTIONS, knobs, preset_names, read_preset
from fedlab.results import Result

# In the preset's name, in --seed, and what changes nothing of what a run finds.
ELSEWHERE = frozenset({"name", "seed", "run_dir", "pretrained", "keep_start"})


def repeat_from_config(result: Result) -> str:
    """The command that repeats a run from its own table of knobs."""
    return f"fedlab run {shlex.quote(str(result.directory / 'config.toml'))}"


def resume(result: Result) -> str:
    """The command that continues a run."""
    return f"fedlab resume {shlex.quote(str(result.directory))}"


def repeat_from_preset(result: Result) -> str:
    """The command that repeats a run anywhere: its preset and what differs from it; empty without such a preset."""
    from fedlab.launch import sections  # late: it writes reports itself

    name = str(result.config.get("name", ""))
    if name not in preset_names():
        return ""
    _, preset = read_preset(name)
    known = knobs({**sections(), **CORE_SECTIONS})
    if not known.keys() >= result.config.keys():
        return ""  # of another fedlab
    usual = {**{key: knob.default for key, knob in known.items()}, **preset}
    changed = [
        shlex.quote(f"{key}={str(value).lower() if isinstance(value, bool) else value}")
        for key, value in result.config.items()
        if key not in ELSEWHERE and value != usual[key]
    ]
    return " ".join(["fedlab run", name, *changed, f"--seed {result.config['seed']}"])
