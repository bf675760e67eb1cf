"""The command ``fedlab flower``: somebody's Flower app, run as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from fedlab.cli.common import run_and_print
from fedlab.cli.consoles import stdout
from fedlab.config.presets import parse_overrides
from fedlab.config.resolve import THREADS
from fedlab.errors import ConfigError, plural


def flower(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Folder of a Flower app, with its pyproject.toml.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Entries of its run config, e.g. num-server-rounds=5; engine=ray."
        ),
    ] = None,
    clients: Annotated[int | None, typer.Option(help="Clients; else as the app says, or 10.")] = None,
    seed: Annotated[int, typer.Option(help="Run seed.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads; they fix the bits.")] = THREADS,
    workers: Annotated[
        int, typer.Option(min=0, help="Processes in which clients train, as engine=pool pool.workers=N; 0: this one.")
    ] = 0,
    runs: Annotated[Path, typer.Option(help="Folder for the run directory.")] = Path("runs"),
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the run directory, at the end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Events as JSON lines, the result as the last one.")] = False,
) -> None:
    """Run the ServerApp and ClientApp of a folder on this machine, repeatably, without editing them.

    Nothing is installed: a missing package is named. What the app prints is in app.log of the run directory. The bits
    are the same with engine=pool or engine=ray, which may be a cluster: ray.address=HOST:PORT.

    Example: `fedlab flower quickstart-pytorch learning-rate=0.05 --clients 4 --seed 1`
    """
    from fedlab.flower_apps.engine import AppEngine
    from fedlab.flower_apps.project import FlowerProject
    from fedlab.flower_apps.run import FlowerRun

    usual = FlowerProject.read(path)
    engine, entries = AppEngine.split(parse_overrides(overrides or []), usual.config)
    if workers and engine != AppEngine():
        raise ConfigError(f"--workers is engine=pool, and engine={engine.name} is given too; keep one of them")
    project = usual.with_overrides(entries, clients)
    run = FlowerRun(project, seed, threads, AppEngine.of_processes(workers) if workers else engine)
    directory = run.create(runs)
    if not quiet and not as_json:
        stdout.print(
            f"[bold]{escape(project.name)}[/]: {plural(project.clients, 'client')}, seed {seed}, into "
            f"{escape(str(directory.path))}",
            highlight=False,
            soft_wrap=True,
        )
    advice = f"interrupted; an app's state is its own. Start again with: {run.command()}"
    run_and_print(directory.path, lambda watch: run.run(directory, watch), quiet, as_json, advice)
