"""From what was asked for to a comparison on disk: all of it checked, then its cells run, then its tables written.

Nothing is lost by a kill: the same command finds finished cells by the hash of their knobs and goes on with the rest.
"""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from fedlab import launch, registry
from fedlab.comparison import cells, files, grid, spec, workers
from fedlab.comparison.result import FAILED, FINISHED, PENDING, Cell, Comparison
from fedlab.config.resolve import with_options
from fedlab.config.sections import Value, is_free_text, options
from fedlab.errors import ConfigError, RunError
from fedlab.runs.manifest import git_commit, now, versions
from fedlab.runs.result import FAMILIES, direction, family, headline, is_share, metric_names, server_names, shown

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ComparisonRequest:
    """What is asked for, as it was written; see :func:`compare`."""

    preset: str
    strategies: str | Sequence[str]
    seeds: str | int | Sequence[int] = 5
    knobs: Mapping[str, object] | None = None
    baseline: str | None = None
    target: float | None = None
    budget: Mapping[str, float] | None = None
    jobs: int | None = None
    out: Path | str | None = None
    metric: str | None = None


@dataclass(frozen=True)
class ComparisonPlan:
    """A checked request: the comparison that will be, the cells' knobs by run directory, and how many at a time.

    ``asked`` is the metric that was asked for, if one was.
    """

    comparison: Comparison
    tasks: Mapping[str, workers.Task]
    jobs: int
    threads: int
    gpus: Sequence[str]
    asked: str | None = None


class ProgressListener(Protocol):
    """Something that is told how a comparison goes."""

    def begin(self, plan: ComparisonPlan, there: int) -> None:
        """Cells begin to run; ``there`` of them are finished already."""
        ...

    def started(self, cells: Sequence[Cell]) -> None:
        """A run began, which belongs to these cells."""
        ...

    def ended(self, cells: Sequence[Cell]) -> None:
        """A run has ended."""
        ...


class NullListener:
    """Says nothing."""

    def begin(self, plan: ComparisonPlan, there: int) -> None:
        """Nothing."""

    def started(self, cells: Sequence[Cell]) -> None:
        """Nothing."""

    def ended(self, cells: Sequence[Cell]) -> None:
        """Nothing."""


def check(request: ComparisonRequest) -> ComparisonPlan:
    """Refuse whatever can be refused, in any cell, before anything is made.

    Raises
    ------
    ConfigError, DataError
        With a sentence.
    """
    variants, seeds = spec.parse_strategies(request.strategies), spec.parse_seeds(request.seeds)
    values, budget = spec.parse_knobs(request.knobs or {}), dict(request.budget or {})
    if "rounds" in budget and "rounds" in values:
        raise ConfigError("rounds are set as a knob and as a budget; keep one of them")
    if request.target is not None and not math.isfinite(request.target):
        raise ConfigError(f"the target is {request.target}; write a number, for example --target 0.7")
    plans = grid.plan_cells(request.preset, variants, seeds, values, spec.as_knobs(budget))
    metric = request.metric or plans[0].config.plugins["workload"].spec.primary_metric
    if metric != family(metric):
        raise ConfigError(
            f"--metric {metric} is of one predictor; write {family(metric)}, and each variant is judged by its best "
            "informed one"
        )
    if request.target is not None and request.metric and not direction(metric):
        raise ConfigError(f"whether more or less {metric} is better is not known, so that no target can be reached")
    if request.target is not None and is_share(metric) and not 0 <= request.target <= 1:
        hint = f"; {shown(metric, request.target / 100)} is {request.target / 100:g}" if request.target <= 100 else ""
        raise ConfigError(f"the target is {request.target:g}, and {metric} is a share between 0 and 1{hint}")
    labels = [variant.label for variant in variants]
    baseline = request.baseline or grid.default_baseline(plans)
    if baseline not in labels:
        raise ConfigError(f"the baseline {baseline!r} is none of the compared: {', '.join(labels)}")
    folder = Path(request.out or Path("comparisons") / Path(request.preset).stem).resolve()
    shared = {"checkpoint.pretrain_cache": str(folder / "pretrained")}
    tasks = {plan.run: workers.Task(folder / plan.run, with_options(plan.config, shared)) for plan in plans}
    jobs, threads, gpus = _jobs(request.jobs, list(tasks.values()))
    comparison = Comparison(
        directory=folder,
        preset=request.preset,
        seeds=seeds,
        baseline=baseline,
        upper_bound=grid.upper_bound(plans),
        labelled=grid.uses_labels(plans),
        metric=metric or FAMILIES[0],
        cells=[Cell(plan.label, plan.strategy, plan.seed, plan.knobs, plan.run) for plan in plans],
        grid={name: list(map(spec.format_value, each)) for name, each in values.items() if len(each) > 1},
        target=request.target,
        budget=budget or None,
        command=command(request, seeds, values),
        created=now(),
        versions=versions(),
        git_commit=git_commit(),
    )
    return ComparisonPlan(comparison, tasks, jobs, threads, gpus, request.metric)


def _jobs(asked: int | None, tasks: Sequence[workers.Task]) -> tuple[int, int, list[str]]:
    """How many cells at a time, threads of each, and the GPUs that they share."""
    threads = max(task.config.run.threads for task in tasks)
    most = max(1, cells.cores() // threads)
    devices = {task.config.run.device for task in tasks}
    gpus = visible_gpus() if devices == {"cuda"} else []
    if asked is not None and asked < 1:
        raise ConfigError(f"--jobs {asked} runs nothing; ask for 1 to {most}")
    if asked is not None and asked > most:
        raise ConfigError(
            f"--jobs {asked} with threads={threads} needs {asked * threads} CPU cores, and there are {cells.cores()}; "
            f"ask for 1 to {most}"
        )
    usual = min(len(gpus), most) if gpus else 1 if any(name.startswith("cuda") for name in devices) else most
    return min(asked or usual, len(tasks)), threads, gpus


def visible_gpus() -> list[str]:
    """What ``CUDA_VISIBLE_DEVICES`` calls each usable GPU: its number, or as the variable names it where it is set."""
    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (named or list(map(str, range(count))))[:count]


def command(request: ComparisonRequest, seeds: Sequence[int], values: Mapping[str, Sequence[Value]]) -> str:
    """The command that makes, or goes on with, a comparison."""
    known = options(registry.all_sections())
    words = ["fedlab", "compare", request.preset]
    for name, each in values.items():
        separator = spec.SEPARATOR if is_free_text(known[name]) else ","
        words.append(f"{name}={separator.join(map(spec.format_value, each))}")
    strategies = request.strategies if isinstance(request.strategies, str) else spec.join_variants(request.strategies)
    counted = list(seeds) == list(range(len(seeds)))
    words += ["--strategies", strategies, "--seeds", str(len(seeds)) if counted else ",".join([*map(str, seeds), ""])]
    for kind, amount in (request.budget or {}).items():
        words += ["--budget", f"{kind}={amount:.15g}"]
    for name in ("baseline", "metric", "target", "jobs", "out"):
        value = getattr(request, name)
        words += [f"--{name}", str(value)] if value is not None else []
    return shlex.join(words)


def execute(plan: ComparisonPlan, listener: ProgressListener | None = None) -> Comparison:
    """Run what is not there yet, and write the tables of what was found.

    Raises
    ------
    RunError
        When another comparison uses the folder.
    """
    listener = listener or NullListener()
    with cells.directory_lock(plan.comparison.directory), launch.sigterm_as_interrupt():
        comparison = _load_status(plan)
        comparison.write()
        waiting = [task for run, task in plan.tasks.items() if not _all_finished(comparison, run)]
        listener.begin(plan, len(comparison.cells) - sum(cell.status != FINISHED for cell in comparison.cells))
        owners = {
            task.path: [cell for cell in comparison.cells if cell.run == run] for run, task in plan.tasks.items()
        }
        with closing(_run(plan, waiting, lambda task: listener.started(owners[task.path]))) as ended:
            for task, error in ended:
                done = [replace(cell, status=FAILED if error else FINISHED, error=error) for cell in owners[task.path]]
                comparison = _with(comparison, done)
                comparison.write()
                listener.ended(done)
                if plan.asked and not error:
                    _metric(comparison, plan.asked)  # a metric that no run has ends it with the first
        comparison = replace(comparison, metric=_metric(comparison, plan.asked))
        comparison.write()
        files.write_files(comparison)
    return comparison


def _run(plan: ComparisonPlan, waiting: Sequence[workers.Task], begin: workers.Begin) -> workers.Ended:
    if plan.jobs == 1 or len(waiting) < 2:
        return workers.run_sequential(waiting, begin)
    jobs = min(plan.jobs, len(waiting))
    return workers.run_parallel(waiting, jobs, plan.gpus, plan.comparison.directory / "workers.log", begin)


def _load_status(plan: ComparisonPlan) -> Comparison:
    """The comparison with what is there already."""
    done = {run for run, task in plan.tasks.items() if cells.finished(task.path)}
    standing = [replace(cell, status=FINISHED if cell.run in done else PENDING) for cell in plan.comparison.cells]
    return replace(plan.comparison, cells=standing)


def _all_finished(comparison: Comparison, run: str) -> bool:
    return all(cell.status == FINISHED for cell in comparison.cells if cell.run == run)


def _with(comparison: Comparison, changed: Sequence[Cell]) -> Comparison:
    new = {(cell.label, cell.seed, tuple(cell.knobs.items())): cell for cell in changed}
    return replace(
        comparison,
        cells=[new.get((cell.label, cell.seed, tuple(cell.knobs.items())), cell) for cell in comparison.cells],
    )


def _metric(comparison: Comparison, asked: str | None) -> str:
    """What is compared: what was asked for, else what is usual, else the family that most runs can be judged by."""
    clients = [metric_names(result.rounds) for _, result in comparison.results]
    known = {family(name) for names in clients for name in names}
    known |= {name for _, result in comparison.results for name in server_names(result.rounds)}
    if comparison.metric in known or not clients:
        return comparison.metric
    if asked:
        raise ConfigError(
            f"no run reports {asked!r}; set --metric to one of {', '.join(sorted(known))}. Nothing is lost: the cells "
            f"are kept in {comparison.directory}"
        )
    found = [family(headline(each)) for each in clients if each]
    return max(found, key=found.count, default=FAMILIES[0])


def compare(
    preset: str,
    strategies: str | Sequence[str],
    *,
    seeds: int | Sequence[int] = 5,
    knobs: Mapping[str, object] | None = None,
    baseline: str | None = None,
    target: float | None = None,
    budget: Mapping[str, float] | None = None,
    jobs: int | None = None,
    out: Path | str | None = None,
    metric: str | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Run strategies on the same seeds and return one row for each cell, round and client.

    Parameters
    ----------
    preset
        Name of a preset (``fedlab list``) or path of a TOML file.
    strategies
        Names, ``NAME:knob=value`` or ``LABEL=NAME:knob=value``, as a list or separated by commas.
    seeds
        How many from 0, or each of them.
    knobs
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
        What is compared: a family of the clients' metrics ("accuracy", "loss"), or a metric of the server's score
        ("validity"); None: what is usual for the workload.
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

    from fedlab.comparison.progress import RichProgress

    plan = check(ComparisonRequest(preset, strategies, seeds, knobs, baseline, target, budget, jobs, out, metric))
    if progress:
        with RichProgress(Console()) as live:
            comparison = execute(plan, live)
    else:
        comparison = execute(plan)
    if comparison.failed:
        raise RunError(failures(comparison))
    return comparison.frame


def failures(comparison: Comparison) -> str:
    """Which cells failed and why, and what becomes of the rest."""
    lines = [f"  {cell.name}: {cell.reason}" for cell in comparison.failed]
    return "\n".join(
        [
            f"{len(lines)} of {len(comparison.cells)} cells failed; the others are kept in {comparison.directory}, "
            "and the same command tries the failed ones again (report.html has all of what they said):",
            *lines,
        ]
    )
