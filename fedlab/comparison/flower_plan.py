"""Plan of a comparison over the run config of a Flower app: every combination of values is a variant.

The app is what it is, so a variant has no other name than its values, and all of them are compared with the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

from fedlab.comparison import spec
from fedlab.comparison.cell import Cell
from fedlab.comparison.flower_work import FlowerWork
from fedlab.comparison.grid import THREADS, config_hash
from fedlab.comparison.plan import ComparisonPlan, ComparisonRequest, at_once, check_metric, command, reached
from fedlab.comparison.result import Comparison
from fedlab.comparison.workers import Task
from fedlab.config.sections import Value
from fedlab.errors import ConfigError
from fedlab.flower_apps.engine import AppEngine
from fedlab.flower_apps.project import FILE, FlowerProject
from fedlab.flower_apps.recorder import DECLARED
from fedlab.flower_apps.run import FlowerRun
from fedlab.runs.manifest import git_commit, now, versions

STRATEGY = "of the app"


def is_app(preset: str) -> bool:
    """Return True if what is to be compared is the folder of a project, not a preset, nor the defaults ("")."""
    return bool(preset) and (Path(preset) / FILE).is_file()


def plan_app(request: ComparisonRequest) -> ComparisonPlan:
    """Check every cell of a request about a Flower app, before anything is made.

    Raises
    ------
    ConfigError
        With a sentence.
    """
    if request.strategies or request.budget:
        raise ConfigError(
            "a Flower app has its own strategy and its own number of rounds; leave out --strategies and --budget, and "
            "compare values of its run config: key=v1,v2"
        )
    backend = reached(request.on)
    project, seeds = FlowerProject.read(request.name), spec.parse_seeds(request.seeds)
    engine, overrides = AppEngine.split(request.overrides or {}, project.config)
    values = parse_values(project, overrides)
    varied = [key for key, each in values.items() if len(each) > 1]
    check_metric(request, request.metric or "", DECLARED)
    folder = Path(request.out or Path("comparisons") / project.path.name).resolve()
    sources = project.content_hash()  # an app that has changed is another one
    cells, tasks = list[Cell](), dict[str, Task]()
    for point in (dict(zip(values, each, strict=True)) for each in product(*values.values())):
        variant = project.with_overrides(point)
        label = " ".join(f"{key}={spec.format_value(point[key])}" for key in varied) or project.name
        name = config_hash([str(project.path), sources, dict(variant.config), variant.clients, THREADS])
        for seed in seeds:
            run = f"cells/{name}-{seed}"
            cells.append(Cell(label, STRATEGY, seed, {}, run))
            tasks[run] = Task(folder / run, FlowerWork(FlowerRun(variant, seed, THREADS, engine)))
    FlowerRun(project, engine=engine).check()
    labels = list(dict.fromkeys(cell.label for cell in cells))
    if request.baseline not in (None, *labels):
        raise ConfigError(f"the baseline {request.baseline!r} is none of the compared: {', '.join(labels)}")
    jobs, threads, gpus = at_once(request.jobs, list(tasks.values()), backend)
    comparison = Comparison(
        directory=folder,
        preset=request.name,
        seeds=seeds,
        baseline=request.baseline or labels[0],
        metric=request.metric or "",
        cells=cells,
        target=None if request.target is None else float(request.target),
        command=command(request, seeds, [*written(values), *engine.written()]),
        created=now(),
        versions=versions(),
        git_commit=git_commit(),
    )
    return ComparisonPlan(comparison, tasks, jobs, threads, gpus, request.metric, backend)


def parse_values(project: FlowerProject, overrides: Mapping[str, object]) -> dict[str, list[Value]]:
    """Return the values of each entry of the run config that is set: text is taken whole, ``|`` separates any.

    Raises
    ------
    ConfigError
        When the run config has no such entry, a value is of another type, or a value is given twice.
    """
    found: dict[str, list[Value]] = {}
    for key, given in overrides.items():
        values = spec.split_values(given, isinstance(project.config.get(key), str))
        for value in values:
            project.with_overrides({key: value})
        if not values or len({str(value) for value in values}) < len(values):
            raise ConfigError(f"{key}: {given!r} gives no value, or one of them twice")
        found[key] = values
    return found


def written(values: Mapping[str, Sequence[Value]]) -> list[str]:
    """Return values as they are written on the command line."""
    return [f"{key}={spec.SEPARATOR.join(map(spec.format_value, each))}" for key, each in values.items()]
