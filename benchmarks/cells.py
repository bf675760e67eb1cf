"""Runs that tables are made of: each is done once, resumed if killed, and may go on from another's checkpoint."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

import fedlab
from fedlab import launch
from fedlab.config import Value
from fedlab.results import Result
from fedlab.runs import RunDirectory


@dataclass(frozen=True)
class Begun:
    """Where a run goes on from: what both have in common is computed once.

    Attributes
    ----------
    run
        The directory of a run with a checkpoint of ``round``; it must have kept it (``keep_checkpoints``).
    arrays_only
        For another strategy than that run's: its state is left out.
    """

    run: Path
    round: int = 0
    arrays_only: bool = False


def one_run(preset: str, knobs: Mapping[str, Value], runs: Path, begun: Begun | None = None) -> Result:
    """One run, read from disk where it is there."""
    path = directory_of(preset, knobs, runs)
    if not (path / "config.toml").exists():
        name = path.name.rpartition("-")[0]
        directory = RunDirectory.create(runs, launch.prepare(preset, {**knobs, "name": name}))
        if begun:
            checkpoint = f"checkpoints/round-{begun.round}.pt"
            (directory.path / checkpoint).parent.mkdir()
            state = torch.load(begun.run / checkpoint, weights_only=True)
            if begun.arrays_only:
                state["strategy"] = {}
            torch.save(state, directory.path / checkpoint)
    return fedlab.resume(path)


def directory_of(preset: str, knobs: Mapping[str, Value], runs: Path) -> Path:
    """Where :func:`one_run` leaves a run."""
    key = hashlib.sha256(json.dumps([preset, dict(knobs)], sort_keys=True).encode()).hexdigest()[:12]
    return runs / f"{key}-{knobs['seed']}"


def pretrained(preset: str, knobs: Mapping[str, Value], runs: Path) -> Begun:
    """The start of runs that differ only in what comes after round 0."""
    return Begun(one_run(preset, {**knobs, "rounds": 1, "keep_checkpoints": 1000}, runs).directory)


def parser(description: str | None, runs: str = "runs/tables") -> argparse.ArgumentParser:
    """The options of every table."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("knobs", nargs="*", help="key=value for every run")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    options.add_argument("--runs", type=Path, default=Path(runs), help="where runs are kept, and found again")
    options.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="runs at a time")
    return options


def workers(processes: int) -> ProcessPoolExecutor:
    """Processes for runs; spawned, since a fork of one whose torch has used threads waits for ever."""
    return ProcessPoolExecutor(processes, mp_context=get_context("spawn"))


def threads(processes: int) -> int:
    """Threads for each of several processes at once."""
    return max(1, (os.cpu_count() or 1) // processes)


def table(title: str, columns: Iterable[str]) -> Table:
    """A table with a first column of names, and figures to its right."""
    made = Table(title=title)
    for number, column in enumerate(columns):
        made.add_column(column, justify="right" if number else "left")
    return made


def spread(values: Any) -> str:
    """Mean and standard deviation over seeds."""
    values = np.asarray(values, dtype=float)
    return f"{values.mean():.1f} ± {values.std(ddof=1) if len(values) > 1 else 0:.1f}"


def gain(values: Any) -> str:
    """Mean, standard deviation and least value of a paired difference over seeds."""
    values = np.asarray(values, dtype=float)
    return f"{values.mean():+.1f} ± {values.std(ddof=1) if len(values) > 1 else 0:.1f} (≥ {values.min():+.1f})"
