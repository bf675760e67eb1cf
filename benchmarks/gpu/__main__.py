"""All parts of the GPU benchmark within a time, in the order of their worth, and one table of what they gave.

    python -m benchmarks.gpu                              # nine minutes on the first GPU
    python -m benchmarks.gpu --only right throughput --minutes 4 --out gpu.json
    python -m benchmarks.gpu --device cpu --minutes 5     # tries the parts out where there is no GPU: tiny sizes

It needs the installed package and, for CIFAR-10 and all of QM9, FEDLAB_DATA; a set that is not here is left out, and
the table says so. ``python -m benchmarks.gpu.data`` writes a small folder to carry to a machine without them. Each row
is in the JSON file as soon as it is known. The exit code is 1 when something failed.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.gpu import clients, long, right, rounds, steps, throughput
from benchmarks.gpu.data import CACHE
from benchmarks.gpu.rows import Record, Row, cells, table_of
from benchmarks.gpu.schedule import Task, allotment, perform_all
from fedlab import __version__
from fedlab.config.presets import parse_overrides
from fedlab.errors import ConfigError, FedlabError
from fedlab.training import resolve_device


@dataclass(frozen=True)
class Part:
    """One part: its tasks, processes at once on a GPU, and its weight when the time is divided.

    Where ``by_time`` is true, a task takes all the time that it is given, so tasks one after another divide it.
    """

    tasks: Callable[[str, float, Path], list[Task]]
    processes: int
    weight: float
    by_time: bool = False


PARTS: Mapping[str, Part] = {
    "right": Part(right.tasks, 12, 3.0),
    "steps": Part(steps.tasks, 1, 1.0),
    "throughput": Part(throughput.tasks, 1, 3.0),
    "clients": Part(clients.tasks, 1, 1.0),
    "rounds": Part(rounds.tasks, 1, 0.7),
    "long": Part(long.tasks, len(long.PRESETS), 3.0, by_time=True),
}


def tasks_of(part: Part, asked: argparse.Namespace, seconds: float, processes: int) -> list[Task]:
    """Return a part's tasks that were asked for, each with its share of the time."""
    own = {"settings": asked.settings, "planned": 60 * asked.planned_minutes} if part.by_time else {}

    def matching(share: float) -> list[Task]:
        found = part.tasks(asked.device, share, asked.runs.resolve())
        return [replace(task, options={**task.options, **own}) for task in found if asked.match in task.what]

    tasks = matching(seconds)
    turns = math.ceil(len(tasks) / processes)
    return matching(seconds / turns) if part.by_time and turns > 1 else tasks


def about(device: torch.device) -> dict[str, Any]:
    """Return what the figures depend on: versions, processor, card, commit."""
    described: dict[str, Any] = {
        "fedlab": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpus": os.cpu_count(),
        "device": str(device),
        "time": time.strftime("%Y-%m-%d %H:%M"),
    }
    if git := shutil.which("git"):
        commit = subprocess.run([git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
        described |= {"commit": commit.stdout.strip()} if not commit.returncode else {}
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        described |= {"card": card.name, "memory_gb": round(card.total_memory / 1e9, 1), "cuda": torch.version.cuda}
    return described


def use_cache_of_data() -> None:
    """Take what ``benchmarks.gpu.data`` has computed, where the data folder has it, for all processes of this one."""
    folder = Path(os.environ.get("FEDLAB_DATA") or "nowhere") / CACHE
    if folder.is_dir():
        os.environ.setdefault("XDG_CACHE_HOME", str(folder.resolve()))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu",
        description=(__doc__ or "").replace("``", ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="time for all parts together")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="PART")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="JSON file of all rows")
    parser.add_argument("--runs", type=Path, default=Path("runs/gpu"), help="folder of the long runs, which stay")
    parser.add_argument("--processes", type=int, default=0, help="processes at once, at most; 0: as many as CPUs")
    parser.add_argument("--match", default="", help="only tasks whose name contains this text")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        dest="settings",
        metavar="KEY=VALUE",
        help="options of the long runs, such as server.final_lr_fraction=0.02; --match names the preset that has them",
    )
    parser.add_argument(
        "--planned-minutes",
        type=float,
        default=0.0,
        help="time of a long run in all calls together: its learning rate falls over what fits into that",
    )
    asked = parser.parse_args(arguments)
    try:
        asked.settings = parse_overrides(asked.settings)
    except ConfigError as error:
        parser.error(str(error))
    return asked


def main() -> int:
    """Run the parts that were asked for."""
    asked, end = parse(), time.monotonic()
    use_cache_of_data()
    end += 60 * asked.minutes
    console = Console(width=150, highlight=False)
    try:
        device = resolve_device(asked.device)
    except FedlabError as error:
        console.print(str(error))
        return 1
    described = about(device)
    record = Record(asked.out, described)
    console.print(", ".join(f"{key} {value}" for key, value in described.items()))

    def report(rows: list[Row]) -> None:
        record.add(rows)
        for row in rows:
            left = end - time.monotonic()
            console.print(f"[{left:4.0f} s left] " + " | ".join(filter(None, cells(row))), markup=False)

    weights = {name: part.weight for name, part in PARTS.items() if name in asked.only}
    for name in weights:
        seconds, part = allotment(end - time.monotonic(), weights, name), PARTS[name]
        processes = min(part.processes, asked.processes or os.cpu_count() or 1)
        threads = max(1, (os.cpu_count() or 1) // processes)
        try:
            tasks = tasks_of(part, asked, seconds, processes)
        except Exception as error:  # the next part may do
            report([Row(name, "its tasks", error=f"{type(error).__name__}: {error}"[:2000])])
            continue
        perform_all(tasks, seconds, processes, report, {"OMP_NUM_THREADS": str(threads)})
    title = described.get("card", platform.processor() or "CPU")
    console.print(table_of(record.rows, f"{title}, torch {torch.__version__}, {described['time']}"))
    return int(record.failed)


if __name__ == "__main__":
    sys.exit(main())
