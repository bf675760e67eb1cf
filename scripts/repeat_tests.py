"""Run tests again and again beside processes at full load, and print how long each pass took.

``python -m scripts.repeat_tests tests/fedlab/engines/test_faults.py`` runs the tests of what goes wrong between real
processes 20 times beside two busy ones. It ends with the first pass that fails, whose output it prints.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
EVERY_TIER = "not gpu and not paper and not container"


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep so many processes at full load."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def passes(tests: list[str], times: int) -> Iterator[float]:
    """Yield the seconds of each pass.

    Raises
    ------
    SystemExit
        When a test fails.
    """
    command = [sys.executable, "-m", "pytest", "-n", "0", "-m", EVERY_TIER, "-p", "no:cacheprovider", *tests]
    for _ in range(times):
        began = time.monotonic()
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if ended.returncode:
            print(ended.stdout + ended.stderr)
            raise SystemExit(1)
        yield time.monotonic() - began


def main() -> None:
    """Repeat the tests that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", nargs="+", help="files or names of tests")
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--busy", type=int, default=2, help="processes at full load beside them")
    options = parser.parse_args()
    seconds: list[float] = []
    with busy(options.busy):
        for number, taken in enumerate(passes(options.tests, options.times), start=1):
            seconds.append(taken)
            load, at = os.getloadavg()[0], time.strftime("%H:%M:%S")
            print(f"{at}: pass {number} of {options.times}, {taken:.0f} s, load {load:.1f}", flush=True)
    print(
        f"{len(seconds)} passes in a row: {min(seconds):.0f} to {max(seconds):.0f} s each, median "
        f"{median(seconds):.0f} s, {sum(seconds) / 60:.0f} min together, beside {options.busy} busy processes "
        f"on {os.cpu_count()} cores"
    )


if __name__ == "__main__":
    main()
