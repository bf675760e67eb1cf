"""What OpenMP's spinning costs: milliseconds a training step on two threads, idle and beside two busy processes.

python -m benchmarks.threads
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from rich.console import Console
from rich.table import Table

SPINS = {"0: asleep at once": "0", "2000: fedlab's": "2000", "300000: OpenMP's default": "300000"}

STEP = """
import statistics, time
import torch
from torch.nn.functional import cross_entropy
from fedlab.models.digits import SmallNet
torch.set_num_threads(2)
model, x, y = SmallNet(), torch.randn(128, 3, 32, 32), torch.randint(10, (128,))
seconds = []
for _ in range(60):
    started = time.perf_counter()
    cross_entropy(model(x), y).backward()
    seconds.append(time.perf_counter() - started)
print(1000 * statistics.median(seconds[10:]))
"""
BUSY = "import torch; torch.set_num_threads(1); a = torch.randn(600, 600)\nwhile True: a @ a"


def step(spins: str) -> float:
    """Median milliseconds of a step of the small digit network in a fresh process."""
    environment = {**os.environ, "GOMP_SPINCOUNT": spins}
    output = subprocess.run([sys.executable, "-c", STEP], env=environment, capture_output=True, text=True, check=True)
    return float(output.stdout)


def main() -> None:
    """Measure each setting twice, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    idle = {name: step(spins) for name, spins in SPINS.items()}
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(2)]
    try:
        loaded = {name: step(spins) for name, spins in SPINS.items()}
    finally:
        for process in busy:
            process.kill()
            process.wait()
    table = Table(title=f"milliseconds a step on two threads, median of 50, {os.cpu_count()} CPUs")
    for head in ("GOMP_SPINCOUNT", "idle", "beside two busy processes"):
        table.add_column(head, justify="left" if head == "GOMP_SPINCOUNT" else "right")
    for name in SPINS:
        table.add_row(name, f"{idle[name]:.0f}", f"{loaded[name]:.0f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
