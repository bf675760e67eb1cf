"""All parts of the GPU benchmark within a time, in the order of their worth, and one table of what they gave.

    python -m benchmarks.gpu                              # nine minutes on the first GPU
    python -m benchmarks.gpu --only right throughput --minutes 4 --out gpu.json
    python -m benchmarks.gpu --only quarter --minutes 9.3 --carry home    # a card that is lent for a quarter of an hour
    python -m benchmarks.gpu --device cpu --minutes 5     # tries the parts out where there is no GPU: tiny sizes

It needs the installed package and, for CIFAR-10 and all of QM9, FEDLAB_DATA; a set that is not here is left out, and
the table says so. ``python -m benchmarks.gpu.data`` writes a small folder to carry to a machine without them. Each row
is in the JSON file as soon as it is known. The exit code is 1 when something failed.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.gpu import carry, long
from benchmarks.gpu.data import CACHE
from benchmarks.gpu.parts import PARTS, QUARTER, USUAL, allotment, items_of, tasks_of
from benchmarks.gpu.rows import Record, Row, cells, table_of
from benchmarks.gpu.schedule import perform_all
from fedlab import __version__
from fedlab.config.presets import parse_overrides
from fedlab.errors import ConfigError, FedlabError, plural
from fedlab.training import resolve_device

CARRYING = 12.0  # seconds of a long run in which it is packed


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


def carried(run: Path, out: Path) -> Iterator[Row]:
    """Pack a long run, if it was begun: whole where that is one piece, else as a light copy; yield how large it is."""
    if not run.is_dir():
        return
    try:
        pieces, light = carry.pack_small(run, out)
    except (FedlabError, OSError) as error:
        yield Row(long.PART, f"{run.name}, carried", error=str(error))
        return
    size = sum(piece.stat().st_size for piece in pieces) / 1e6
    note = f"{plural(len(pieces), 'piece')} in {out}: " + (
        "nearly the same weights" if light else "goes on to the same bits"
    )
    yield Row(long.PART, f"{run.name}, carried", size, "MB", note=note)


def use_cache_of_data() -> None:
    """Let this process and its children read the cache that ``benchmarks.gpu.data`` put into the data folder."""
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
    parser.add_argument(
        "--only",
        nargs="+",
        default=list(USUAL),
        metavar="PART",
        help=f"{', '.join(PARTS)}, in the order given; PART:TEXT for tasks whose name contains a text; {QUARTER} for "
        "a fixed order of a quarter of an hour",
    )
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
        help="options of the long runs that are asked for, such as server.final_lr_fraction=0.02",
    )
    parser.add_argument(
        "--planned-minutes",
        type=float,
        default=0.0,
        help="time of a long run in all calls together: its learning rate falls over what fits into that",
    )
    parser.add_argument("--carry", type=Path, metavar="DIR", help="pack each long run there, to go on elsewhere")
    asked = parser.parse_args(arguments)
    try:
        asked.items = items_of(asked.only, asked.match, parse_overrides(asked.settings))
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
        if device.type == "cpu":  # goals are of a GPU, and of full sizes
            rows = [replace(row, goal=None) for row in rows]
        record.add(rows)
        for row in rows:
            left = end - time.monotonic()
            console.print(f"[{left:4.0f} s left] " + " | ".join(filter(None, cells(row))), markup=False)

    for number, item in enumerate(asked.items):
        seconds, part = allotment(end - time.monotonic(), asked.items, number), PARTS[item.part]
        processes = min(part.processes, asked.processes or os.cpu_count() or 1)
        threads = max(1, (os.cpu_count() or 1) // processes)
        reserve = min(CARRYING, 0.1 * seconds) if part.by_time and asked.carry else 0.0
        seconds -= reserve
        try:
            tasks = tasks_of(item, asked.device, seconds, asked.runs.resolve(), processes, 60 * asked.planned_minutes)
        except Exception as error:  # the next part may do
            report([Row(item.part, "its tasks", error=f"{type(error).__name__}: {error}"[:2000])])
            continue
        perform_all(tasks, seconds, processes, report, {"OMP_NUM_THREADS": str(threads)})
        if reserve:
            report([row for task in tasks for row in carried(asked.runs / long.folder_of(task.what), asked.carry)])
    title = described.get("card", platform.processor() or "CPU")
    console.print(table_of(record.rows, f"{title}, torch {torch.__version__}, {described['time']}"))
    return int(record.failed)


if __name__ == "__main__":
    sys.exit(main())
