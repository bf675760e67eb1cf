"""The tests that need a GPU (mark ``gpu``) in ``tests/fedlab``, each as a row."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.gpu.rows import Row
from benchmarks.gpu.schedule import Task
from fedlab.training import resolve_device

PART = "tests"
FOLDER = Path("tests/fedlab")


def check(collect_only: bool) -> Iterator[Row]:
    """Yield each test with its seconds; where they cannot run, that they were found."""
    if not FOLDER.is_dir():
        yield Row(PART, str(FOLDER), note="left out: no such folder here; run this in a clone")
        return
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-n", "0", "-p", "no:cacheprovider", "--tb=short"]
        command += [str(FOLDER), "--collect-only"] if collect_only else [str(FOLDER), f"--junitxml={report}"]
        ended = subprocess.run(command, capture_output=True, text=True)
        said = [line for line in (ended.stdout + ended.stderr).splitlines() if line.strip()] or ["nothing"]
        if collect_only:
            error = said[-1] if ended.returncode else ""
            yield Row(PART, "found", float(sum("::" in line for line in said)), error=error, note="not run: no GPU")
            return
        if not report.is_file():
            yield Row(PART, str(FOLDER), error=f"pytest ended with {ended.returncode}: {said[-1]}"[:2000])
            return
        yield from rows_of(report)


def rows_of(report: Path) -> Iterator[Row]:
    """Yield a row for each test in a report of pytest's; what is skipped is a note."""
    for case in ElementTree.parse(report).iter("testcase"):
        ills = [found for kind in ("failure", "error") for found in case.findall(kind)]
        error = " ".join(f"{found.get('message')} {(found.text or '')[-600:]}" for found in ills)
        skipped = case.find("skipped")
        note = "" if skipped is None else f"skipped: {skipped.get('message')}"
        yield Row(
            PART, str(case.get("name")), float(case.get("time", 0)), "s", error=error[:2000], note=note, tally=not note
        )


def tasks(device: str, seconds: float, runs: Path) -> list[Task]:
    """Return the one task."""
    return [Task(PART, str(FOLDER), f"{__name__}:check", {"collect_only": resolve_device(device).type == "cpu"})]
