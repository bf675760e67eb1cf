"""What a message costs a deployed client before any work: a new process with its imports, and a fork of a warm one.

python -m benchmarks.messages
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from rich.console import Console

from benchmarks import cells
from fedlab.engines import fork_server
from fedlab.engines.programs import CLIENT_MODULES

IMPORTS = (*CLIENT_MODULES, "flwr.supernode.cli")  # what Flower's command has loaded when the app begins


def nothing() -> None:
    """Do nothing, as a fork does here."""


def seconds(command: Sequence[str], times: int) -> float:
    """Median wall time of a command, after one that is not counted."""
    found = []
    for _ in range(times + 1):
        began = time.perf_counter()
        subprocess.run(command, check=True)
        found.append(time.perf_counter() - began)
    return median(found[1:])


def main() -> None:
    """Time both and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=7)
    times = parser.parse_args().times
    plain = seconds([sys.executable, "-c", "import " + ", ".join(IMPORTS)], times)
    with (
        tempfile.TemporaryDirectory(prefix="fedlab-") as folder,
        fork_server.fork_server(Path(folder), {"answer": "benchmarks.messages:nothing"}, IMPORTS),
    ):
        forked = seconds(["answer"], times)
    table = cells.table(f"seconds before a message's work begins, median of {times}", ("", "seconds", "ratio"))
    table.add_row("a new process", f"{plain:.2f}", "1")
    table.add_row("a fork of one that is warm", f"{forked:.2f}", f"{plain / forked:.0f} x faster")
    Console().print(table)


if __name__ == "__main__":
    main()
