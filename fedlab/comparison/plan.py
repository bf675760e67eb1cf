"""From what was asked for to a checked plan: the comparison to be and the cells that it takes."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from fedlab.checks import declared_metrics
from fedlab.comparison import cells, grid, spec, workers
from fedlab.comparison.cell import Cell
from fedlab.comparison.cluster.backend import Backend
from fedlab.comparison.cluster.backends import find_backend
from fedlab.comparison.objects import folder_name, is_of_this_process, objects_of_this_process
from fedlab.comparison.preset_work import PresetWork
from fedlab.comparison.result import Comparison
from fedlab.config.resolve import with_options
from fedlab.config.schema import Config
from fedlab.config.sections import Value, is_free_text, options
from fedlab.errors import ConfigError
from fedlab.run_data import data_notes
from fedlab.runs.manifest import git_commit, now, versions
from fedlab.runs.metrics import MetricTable
from fedlab.training import resolve_device


@dataclass(frozen=True)
class ComparisonRequest:
    """A comparison as it was asked for; see :func:`fedlab.comparison.runner.compare`.

    ``title`` is what a preset is called that has no name; "" takes that of the preset.
    """

    preset: str | Mapping[str, Any]
    strategies: str | Sequence[str]
    seeds: str | int | Sequence[int] = 5
    overrides: Mapping[str, object] | None = None
    baseline: str | None = None
    target: float | None = None
    budget: Mapping[str, float] | None = None
    jobs: int | None = None
    out: Path | str | None = None
    metric: str | None = None
    on: str | None = None
    title: str = ""

    @property
    def name(self) -> str:
        """Name of the preset for people."""
        return self.preset if isinstance(self.preset, str) else self.title


@dataclass(frozen=True)
class ComparisonPlan:
    """A checked request: the comparison to be, the cells' tasks by run directory, and the number of cells at a time.

    ``asked`` is the metric that was asked for, if one was; ``backend`` is the cluster that runs the cells, None for
    this machine; ``notes`` are lines about the data of the first cell.
    """

    comparison: Comparison
    tasks: Mapping[str, workers.Task]
    jobs: int
    threads: int
    gpus: Sequence[str]
    asked: str | None = None
    backend: Backend | None = None
    notes: Sequence[str] = ()


class ComparisonListener(Protocol):
    """An object that is called while a comparison runs."""

    def on_start(self, plan: ComparisonPlan, finished: int) -> None:
        """React to the start; ``finished`` of the cells are there already."""
        ...

    def on_cell_start(self, cells: Sequence[Cell]) -> None:
        """React to the start of a run, which belongs to these cells."""
        ...

    def on_cell_end(self, cells: Sequence[Cell]) -> None:
        """React to the end of a run, which belongs to these cells."""
        ...


class NullListener:
    """A listener that shows nothing."""

    def on_start(self, plan: ComparisonPlan, finished: int) -> None:
        """React to the start; ``finished`` of the cells are there already."""

    def on_cell_start(self, cells: Sequence[Cell]) -> None:
        """React to the start of a run, which belongs to these cells."""

    def on_cell_end(self, cells: Sequence[Cell]) -> None:
        """React to the end of a run, which belongs to these cells."""


def plan_comparison(request: ComparisonRequest) -> ComparisonPlan:
    """Check every cell of a request, before anything is made.

    Raises
    ------
    ConfigError, DataError
        With a sentence.
    """
    variants, seeds = spec.parse_strategies(request.strategies), spec.parse_seeds(request.seeds)
    sections, budget = spec.sections_of(request.preset), request.budget or {}
    values = spec.parse_options(request.overrides or {}, sections)
    if "rounds" in budget and "rounds" in values:
        raise ConfigError("rounds are set as an option and as a budget; keep one of them")
    backend = reached(request.on)
    plans = grid.plan_cells(request.preset, variants, seeds, values, spec.as_options(budget), here=backend is None)
    metric = request.metric or plans[0].config.plugins["workload"].spec.primary_metric
    check_metric(request, metric, MetricTable.merged(declared_metrics(plan.config) for plan in plans))
    labels = [variant.label for variant in variants]
    baseline = request.baseline or grid.default_baseline(plans)
    if baseline not in labels:
        raise ConfigError(f"the baseline {baseline!r} is none of the compared: {', '.join(labels)}")
    folder = Path(request.out or Path("comparisons") / (request.title or folder_name(request.name))).resolve()
    tasks = {plan.run: workers.Task(folder / plan.run, PresetWork(_in_folder(plan.config, folder))) for plan in plans}
    jobs, threads, gpus = at_once(_asked_jobs(request, plans), list(tasks.values()), backend)
    comparison = Comparison(
        directory=folder,
        preset=request.name,
        seeds=seeds,
        baseline=baseline,
        upper_bound=grid.upper_bound(plans),
        labeled=grid.uses_labels(plans),
        metric=metric,
        cells=[Cell(plan.label, plan.strategy, plan.seed, plan.options, plan.run) for plan in plans],
        grid={name: list(map(spec.format_value, each)) for name, each in values.items() if len(each) > 1},
        target=None if request.target is None else float(request.target),
        budget={kind: float(amount) for kind, amount in budget.items()} or None,
        command=command(request, seeds, options_written(values, sections)),
        created=now(),
        versions=versions(),
        git_commit=git_commit(),
    )
    return ComparisonPlan(comparison, tasks, jobs, threads, gpus, request.metric, backend, data_notes(plans[0].config))


def _asked_jobs(request: ComparisonRequest, plans: Sequence[grid.CellPlan]) -> int | None:
    """Return the number of cells at a time that was asked for: one, where no other process can find what they use.

    Raises
    ------
    ConfigError
        When more were asked for, or a cluster.
    """
    own = next((name for plan in plans for name in objects_of_this_process(plan.config)), "")
    if own and (request.on or (request.jobs or 1) > 1):
        raise ConfigError(
            f"{own} is an object that only this process has, so its cells run here, one at a time (jobs=1); to run "
            "them in others, define it in a module and give its import path, pkg.module:Name"
        )
    return 1 if own else request.jobs


def _in_folder(config: Config, folder: Path) -> Config:
    """Return the configuration of a cell: it shares pre-training with the others, and trackers file it under them."""
    group, shared = config.run.track_group or folder.name, folder / "pretrained"
    if is_of_this_process(config):
        shared /= grid.PROCESS
    return with_options(config, {"checkpoint.pretrain_cache": str(shared), "track_group": group})


def check_metric(request: ComparisonRequest, metric: str, table: MetricTable) -> None:
    """Refuse a metric that is one variant of several, and a target that cannot be reached.

    Raises
    ------
    ConfigError
        With a sentence.
    """
    target, group = request.target, table.group(metric)
    if metric != group:
        raise ConfigError(
            f"--metric {metric} is of one predictor; write {group}, and each variant is judged by its best informed one"
        )
    if target is None:
        return
    if not math.isfinite(target):
        raise ConfigError(f"the target is {target}; write a number, for example --target 0.7")
    if request.metric and not table.direction(metric):
        raise ConfigError(f"whether more or less {metric} is better is not known, so that no target can be reached")
    if table.is_fraction(metric) and not 0 <= target <= 1:
        hint = f"; {table.format(metric, target / 100)} is {target / 100:g}" if target <= 100 else ""
        raise ConfigError(f"the target is {target:g}, and {metric} is a fraction between 0 and 1{hint}")


def reached(on: str | None) -> Backend | None:
    """Return the cluster that ``--on`` names, once it has answered; None for this machine.

    Raises
    ------
    ConfigError
        When there is none, with a sentence.
    """
    backend = find_backend(on) if on else None
    if backend:
        backend.reach()
    return backend


def at_once(asked: int | None, tasks: Sequence[workers.Task], backend: Backend | None) -> tuple[int, int, list[str]]:
    """Return the number of cells at a time, of threads of each, and the GPUs of this machine that they share.

    Raises
    ------
    ConfigError
        When as many as were asked for cannot run at the same time, or the cluster cannot run them.
    """
    threads = max(task.work.threads for task in tasks)
    if asked is not None and asked < 1:
        raise ConfigError(f"--jobs {asked} runs nothing; ask for 1 or more")
    if backend:
        most = backend.check(tasks)
        return min(asked or most, most), threads, []
    most = max(1, cells.cores() // threads)
    devices = {str(resolve_device(task.work.device)) for task in tasks}
    gpus = visible_gpus() if devices == {"cuda"} else []
    if asked is not None and asked > most:
        raise ConfigError(
            f"--jobs {asked} with threads={threads} needs {asked * threads} CPU cores, and there are {cells.cores()}; "
            f"ask for 1 to {most}"
        )
    usual = min(len(gpus), most) if gpus else 1 if any(name.startswith("cuda") for name in devices) else most
    return min(asked or usual, len(tasks)), threads, gpus


def visible_gpus() -> list[str]:
    """Return the names of usable GPUs for ``CUDA_VISIBLE_DEVICES``: as it names them where it is set, else numbers."""
    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (named or list(map(str, range(count))))[:count]


def options_written(values: Mapping[str, Sequence[Value]], sections: Mapping[str, type]) -> list[str]:
    """Return options of a grid as they are written on the command line."""
    known = options(sections)
    separators = {name: spec.SEPARATOR if is_free_text(known[name]) else "," for name in values}
    return [f"{name}={separators[name].join(map(spec.format_value, each))}" for name, each in values.items()]


def command(request: ComparisonRequest, seeds: Sequence[int], written: Sequence[str]) -> str:
    """Return the command that makes, or goes on with, a comparison; ``written`` are its options."""
    words = ["fedlab", "compare", request.name, *written]
    strategies = request.strategies if isinstance(request.strategies, str) else spec.join_variants(request.strategies)
    words += ["--strategies", strategies] if strategies else []
    counted = list(seeds) == list(range(len(seeds)))
    words += ["--seeds", str(len(seeds)) if counted else ",".join([*map(str, seeds), ""])]
    for kind, amount in (request.budget or {}).items():
        words += ["--budget", f"{kind}={amount:.15g}"]
    for name in ("baseline", "metric", "target", "jobs", "out", "on"):
        value = getattr(request, name)
        words += [f"--{name}", str(value)] if value is not None else []
    line = shlex.join(words)
    return line if isinstance(request.preset, str) else f"# of a mapping or objects, in Python: {line}"
