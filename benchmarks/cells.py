"""Parts that the tables have in common: their options, their runs by name, their processes and their figures."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from fedlab import launch
from fedlab.comparison import cells, statistics
from fedlab.comparison.cells import CheckpointRef
from fedlab.comparison.grid import config_hash
from fedlab.config.sections import Overrides, Value
from fedlab.runs.formatting import MISSING
from fedlab.runs.result import Result


def one_run(
    preset: str,
    overrides: Mapping[str, Value],
    runs: Path,
    begun: CheckpointRef | None = None,
    aside: Overrides | None = None,
) -> Result:
    """One run, read from disk where it is there; runs of a folder share their pre-training.

    Overrides ``aside`` are no part of the name by which it is found.
    """
    shared = {**overrides, **(aside or {}), "checkpoint.pretrain_cache": str(runs / "pretrained")}
    return cells.run_or_resume(directory_of(preset, overrides, runs), lambda: launch.prepare(preset, shared), begun)


def directory_of(preset: str, overrides: Mapping[str, Value], runs: Path) -> Path:
    """Where :func:`one_run` leaves a run: it is known by what it was asked for."""
    return runs / f"{config_hash([preset, dict(overrides)])}-{overrides['seed']}"


def parser(description: str | None, runs: str = "runs/tables") -> argparse.ArgumentParser:
    """The options of every table."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("overrides", nargs="*", help="key=value for every run")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    options.add_argument("--runs", type=Path, default=Path(runs), help="where runs are kept, and found again")
    options.add_argument("--processes", type=int, default=cells.cores(), help="runs at a time")
    return options


def workers(processes: int) -> ProcessPoolExecutor:
    """Processes for runs; spawned, since a fork of one whose torch has used threads waits for ever."""
    return ProcessPoolExecutor(processes, mp_context=get_context("spawn"))


def threads(processes: int) -> int:
    """Threads for each of several processes at once."""
    return max(1, cells.cores() // processes)


def table(title: str, columns: Iterable[str]) -> Table:
    """A table with a first column of names, and figures to its right."""
    made = Table(title=title)
    for number, column in enumerate(columns):
        made.add_column(column, justify="right" if number else "left")
    return made


def spread(values: Any) -> str:
    """Mean and standard deviation over seeds; of a single one, which has no deviation, the value alone."""
    values = np.asarray(values, dtype=float)
    return f"{values.mean():.1f}" + (f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else "")


def gain(values: Any) -> str:
    """Mean, standard deviation and least value of a paired difference over seeds; of a single one the value alone."""
    values = np.asarray(values, dtype=float)
    return f"{values.mean():+.1f}" + (f" ± {values.std(ddof=1):.1f} (≥ {values.min():+.1f})" if len(values) > 1 else "")


def share_of_gap(gain: Any, gap: Any) -> str:
    """Part of a mean gap over seeds that a mean gain closes, in percent; a dash where the gap may be none.

    That is where its 95 % interval is not above 0, and of a single seed, which has no interval.
    """
    share = statistics.closed(float(np.mean(gain)), statistics.interval(gap))
    return MISSING if np.isnan(share) else f"{100 * share:.0f} %"


def by_client(scores: Sequence[Mapping[str, float]], clients: Sequence[str]) -> np.ndarray:
    """Values (seeds, clients + 1) in percent of the clients in this order; the last column is their mean.

    Raises
    ------
    SystemExit
        When a client has no value, without which the mean would be another one.
    """
    for number, one in enumerate(scores):
        if missing := [client for client in clients if client not in one]:
            raise SystemExit(f"run {number} of a row has no test of {', '.join(missing)} after its last round")
    values = 100 * np.array([[one[client] for client in clients] for one in scores])
    return np.column_stack([values, values.mean(1)])
