"""Run the cells of a planned comparison, then write its tables.

Nothing is lost by a kill: the same command finds finished cells by the hash of their options and goes on with the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedlab import launch
from fedlab.comparison import cells, earlier, files, workers
from fedlab.comparison.cell import FAILED, FINISHED, PENDING, Cell
from fedlab.comparison.cluster.schedule import run_on
from fedlab.comparison.objects import Preset, Strategies, named_preset, named_strategies
from fedlab.comparison.plan import (
    ComparisonListener,
    ComparisonPlan,
    ComparisonRequest,
    NullListener,
)
from fedlab.comparison.planner import plan as plan_request
from fedlab.comparison.result import Comparison
from fedlab.errors import ConfigError, RunError, plural
from fedlab.files import ensure_home
from fedlab.runs.result import server_metric_names

if TYPE_CHECKING:
    import pandas as pd


logger = logging.getLogger(__name__)


def execute(plan: ComparisonPlan, listener: ComparisonListener | None = None) -> Comparison:
    """Run what is not there yet, and write the tables of what was found; those of another comparison are kept.

    Raises
    ------
    RunError
        When another comparison uses the folder.
    """
    listener = listener or NullListener()
    with cells.directory_lock(plan.comparison.directory), launch.sigterm_as_interrupt():
        comparison = _load_status(plan)
        earlier.keep_earlier(comparison)
        comparison.write()
        waiting = [task for run, task in plan.tasks.items() if not _all_finished(comparison, run)]
        listener.on_start(plan, len(comparison.cells) - sum(cell.status != FINISHED for cell in comparison.cells))
        unproven = plan.asked is not None
        owners = {task.path: [cell for cell in comparison.cells if cell.run == run] for run, task in plan.tasks.items()}
        with closing(_run(plan, waiting, lambda task: listener.on_cell_start(owners[task.path]))) as ended:
            for task, error in ended:
                status, device = FAILED if error else FINISHED, cells.device_of(task.path)
                done = [replace(cell, status=status, error=error, device=device) for cell in owners[task.path]]
                comparison = _with(comparison, done)
                comparison.write()
                listener.on_cell_end(done)
                logger.info("%s: %s", task.path, error or "finished")
                if unproven and not error:
                    _metric(comparison, plan.asked)  # a metric that the first run lacks ends it with that one
                    unproven = False
        comparison = replace(comparison, metric=_metric(comparison, plan.asked))
        comparison.write()
        files.write_files(comparison)
    return comparison


def _run(plan: ComparisonPlan, waiting: Sequence[workers.Task], begin: workers.Begin) -> workers.Ended:
    if plan.backend:
        return run_on(plan.backend, plan.comparison.directory, waiting, plan.jobs, begin)
    if plan.jobs == 1 or len(waiting) < 2:
        return workers.run_sequential(waiting, begin)
    jobs = min(plan.jobs, len(waiting))
    return workers.run_parallel(waiting, jobs, plan.gpus, plan.comparison.directory / "workers.log", begin)


def _load_status(plan: ComparisonPlan) -> Comparison:
    """Return the comparison with the status of runs that are there already."""
    done = {run: cells.device_of(task.path) for run, task in plan.tasks.items() if cells.finished(task.path)}
    standing = [
        replace(cell, status=FINISHED if cell.run in done else PENDING, device=done.get(cell.run, ""))
        for cell in plan.comparison.cells
    ]
    return replace(plan.comparison, cells=standing)


def _all_finished(comparison: Comparison, run: str) -> bool:
    return all(cell.status == FINISHED for cell in comparison.cells if cell.run == run)


def _with(comparison: Comparison, changed: Sequence[Cell]) -> Comparison:
    new = {(cell.label, cell.seed, tuple(cell.options.items())): cell for cell in changed}
    return replace(
        comparison,
        cells=[new.get((cell.label, cell.seed, tuple(cell.options.items())), cell) for cell in comparison.cells],
    )


def _metric(comparison: Comparison, asked: str | None) -> str:
    """Return the metric that is compared: what was asked for, what is usual, or the group of most runs' primary one."""
    results, table = [result for _, result in comparison.results], comparison.metric_table
    known = {table.group(name) for result in results for name in result.metric_names}
    known |= {name for result in results for name in server_metric_names(result.rounds)}
    if comparison.metric in known or not results:
        return comparison.metric
    if asked:
        ran = ", ".join(dict.fromkeys(cell.label for cell, _ in comparison.results))
        raise ConfigError(
            f"no run of {ran} reports {asked!r}; set --metric to one of {', '.join(sorted(known))}. Nothing is lost: "
            f"the cells are kept in {comparison.directory}"
        )
    found = [table.group(table.primary_metric(result.metric_names)) for result in results if result.metric_names]
    return max(found, key=found.count, default="")


def compare(
    preset: Preset = "",
    strategies: Strategies = "",
    *,
    workload: object = None,
    seeds: int | Sequence[int] = 5,
    overrides: Mapping[str, object] | None = None,
    baseline: str | None = None,
    target: float | None = None,
    budget: Mapping[str, float] | None = None,
    jobs: int | None = None,
    out: Path | str | None = None,
    metric: str | None = None,
    on: str | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Run strategies on the same seeds and return one row for each cell, round and client.

    Parameters
    ----------
    preset
        Name of a preset (``fedlab list``), path of a TOML file, folder of a Flower app, or a mapping of options; empty:
        the defaults.
    strategies
        Names, import paths, ``NAME:option=value`` or ``LABEL=NAME:option=value``, separated by commas or as a list, in
        which objects may stand as well (StrategySpec, AggregationSpec); a mapping gives each a label. None for an app.
    workload
        In place of the preset's: a name, import path or object, as of :func:`fedlab.run`. Cells of an object that only
        this process has run one at a time, and no later process takes them for its own.
    seeds
        How many from 0, or each of them.
    overrides
        For every cell, by name; a list of values makes a grid: ``{"rounds": 3, "server.steps": [24, 48]}``.
    baseline
        Label that others are compared with; the lower bound if it is there, else the first.
    target
        Value of the metric whose rounds, bytes and seconds are looked for.
    budget
        ``{"rounds": 3}``, ``{"bytes": 5e6}``, ``{"seconds": 60}`` or several.
    jobs
        Cells at a time; None: as many as cores or GPUs allow. 1 runs them in this process.
    out
        The comparison's folder; None: ``comparisons/<preset>``.
    metric
        The compared metric: a group of the clients' metrics, or a metric of the server's score; None: what is usual for
        the workload.
    on
        Cluster that runs the cells: ``ray``, ``ray:ADDRESS`` or ``slurm:partition=...,time=...``; None: this machine.
    progress
        Show how far it is, in a terminal or a notebook.

    Returns
    -------
    DataFrame
        As :attr:`fedlab.Comparison.frame`; ``.attrs["directory"]`` names the folder, ``fedlab.Comparison.read`` opens
        it.

    Raises
    ------
    ConfigError, DataError
        Before anything has run.
    RunError
        In the end, when cells failed; the others are kept.
    """
    from rich.console import Console

    ensure_home()
    from fedlab.comparison.progress import RichProgress

    table, title = named_preset(preset, workload)
    names = named_strategies(strategies)
    plan = plan_request(
        ComparisonRequest(table, names, seeds, overrides, baseline, target, budget, jobs, out, metric, on, title)
    )
    if progress:
        with RichProgress(Console()) as live:
            comparison = execute(plan, live)
    else:
        comparison = execute(plan)
    if comparison.failed:
        raise RunError(failures(comparison))
    return comparison.frame


def failures(comparison: Comparison) -> str:
    """Return which cells failed and why, and what becomes of the rest."""
    lines = [f"  {cell.name}: {cell.reason}" for cell in comparison.failed]
    return "\n".join(
        [
            f"{len(lines)} of {plural(len(comparison.cells), 'cell')} failed; the others are kept in "
            f"{comparison.directory}, "
            "and the same command tries the failed ones again (report.html has all of what they said):",
            *lines,
        ]
    )
