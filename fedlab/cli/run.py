"""``fedlab run`` and ``fedlab resume``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedlab.cli.common import run_and_print, start_run
from fedlab.cli.consoles import stdout
from fedlab.config.presets import parse_overrides, preset_names
from fedlab.config.resolve import build_config
from fedlab.config.sections import options
from fedlab.errors import ConfigError
from fedlab.registry import all_sections, merge, names, plugins_of
from fedlab.startup import quick_imports


def complete_preset(incomplete: str) -> list[str]:
    """Return the presets that begin so, for the shell's completion."""
    return [name for name in preset_names() if name.startswith(incomplete)]


def complete_option(incomplete: str) -> list[str]:
    """Return ``key=`` for the options that begin so, or the names that may stand behind ``key=``."""
    key, equals, _ = incomplete.partition("=")
    kinds = {kind: names(kind) for kind in ("workload", "strategy", "engine")}
    found = (
        [f"{key}={name}" for name in kinds.get(key, [])] if equals else [f"{name}=" for name in options(all_sections())]
    )
    return [text for text in found if text.startswith(incomplete)]


def run(
    preset: Annotated[
        str,
        typer.Argument(help="Name of a preset (see `fedlab list`), or a TOML file.", autocompletion=complete_preset),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Options, e.g. rounds=3.", autocompletion=complete_option),
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="What carries the messages: local, inprocess, pool or ray.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    seed: Annotated[int | None, typer.Option(help="Run seed.")] = None,
    runs: Annotated[Path, typer.Option(help="Folder for the run directory.")] = Path("runs"),
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the resolved options as TOML, which is a preset, and stop.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the run directory, at the end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Events as JSON lines, the result as the last one.")] = False,
) -> None:
    """Run a federation and show what it found.

    Example: `fedlab run dualadapt-digits rounds=3 dualadapt.mixup=off --seed 1`
    """
    if not preset:
        raise ConfigError("the name of the preset is empty; `fedlab list presets` shows them")
    chosen = {"engine": engine, "device": device, "seed": seed}
    given = {**parse_overrides(overrides or []), **{key: value for key, value in chosen.items() if value is not None}}
    if print_config:
        values = merge(preset, given)
        typer.echo(build_config(values, plugins_of(values)).to_toml(), nl=False)
        return
    with quick_imports():
        from fedlab import launch

        config = launch.prepare(preset, given)
    start_run(config, runs, f"{config.run.engine} engine", quiet, as_json)


def resume(
    run_dir: Annotated[Path, typer.Argument(help="A run directory.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="What ends the run later, e.g. rounds=20.")
    ] = None,
    wait: Annotated[
        float | None, typer.Option(help="Seconds to wait until all clients of a server are connected.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the run directory, at the end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Events as JSON lines, the result as the last one.")] = False,
) -> None:
    """Continue a run that was killed or interrupted; it ends at the same bits as one that was not.

    A finished run goes on for longer: `fedlab resume runs/dualadapt-digits-0 rounds=20`
    """
    with quick_imports():
        from fedlab import launch
        from fedlab.continuation import continuation
        from fedlab.runs.directory import RunDirectory

    given = {**parse_overrides(overrides or []), **({} if wait is None else {"comm.connect_timeout": wait})}
    if continuation(RunDirectory.open(run_dir), given) is None and not quiet and not as_json:
        longer = "" if "command" in RunDirectory.open(run_dir).manifest() else "; `rounds=N` makes it longer"
        stdout.print(f"this run is finished, and there is nothing to do{longer}. What it found:")
    run_and_print(run_dir.resolve(), lambda watch: launch.resume(run_dir, watch, given), quiet, as_json)
