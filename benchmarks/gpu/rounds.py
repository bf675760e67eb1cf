"""Seconds of a round of DualAdapt with the MCD paper's network and three targets of 10,000 images each."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import torch
from pydantic.dataclasses import dataclass

import fedlab
from benchmarks.gpu.rows import Row
from benchmarks.gpu.schedule import Task
from fedlab.config.sections import Value
from fedlab.data.dataset import ArrayDataset
from fedlab.training import resolve_device
from fedlab.workload import WorkloadSpec
from fedlab.workloads.digits import Digits

PART = "rounds"
EXAMPLES = 10_000
ROUNDS = 4  # the first warms up
GOAL = 1.0
PRESET = "dualadapt-digits-mcd"


@dataclass(frozen=True)
class LargeDigits(Digits):
    """Digits whose clients train on 10,000 images each, or on the number of ``data.max_examples``: those that there
    are, as often as needed. What is learned means nothing, how long it takes does.
    """

    def data(self, partition: int | None, split: str) -> ArrayDataset:
        """Return the images of an owner, those of a client's training repeated."""
        found = super().data(partition, split)
        if partition is None or split != "train":
            return found
        return found.select(torch.arange(self.data_config.max_examples or EXAMPLES) % len(found))


SPEC = WorkloadSpec(LargeDigits, name="digits")


def measure(device: str, small: bool = False) -> Iterator[Row]:
    """Yield the seconds of a round: training alone, and with tests of all clients."""
    overrides: dict[str, Value] = {
        "workload": f"{__name__}:SPEC",
        "digits.targets": "usps,mnist_m,synthdigits",
        "rounds": ROUNDS,
        "server.pretrain_steps": 20,
        "checkpoint.every": ROUNDS,
        "engine": "inprocess",
        "device": device,
        "dualadapt.source_only_twin": False,
    }
    if small:
        overrides |= {"data.max_examples": 64, "server.steps": 1, "client.steps": 1, "digits.network": "small"}
    with tempfile.TemporaryDirectory() as runs:
        result = fedlab.run(PRESET, runs=Path(runs), overrides=overrides)
    after = [line["seconds"] for line in result.rounds if line["round"] > 1]
    phases = {phase: median(line.get(phase, 0.0) for line in after) for phase in after[0]}
    training = median(sum(value for phase, value in line.items() if phase != "evaluate") for line in after)
    note = ", ".join(f"{phase} {value:.2f} s" for phase, value in phases.items())
    what = f"{PRESET}, a round, three targets of {EXAMPLES if not small else 64:,}"
    yield Row(PART, f"{what}, without tests", training, "s", GOAL, at_most=True, note=note)
    yield Row(PART, f"{what}, with tests", training + phases.get("evaluate", 0.0), "s")


def tasks(device: str, seconds: float, runs: Path) -> list[Task]:
    """Return the one task; a CPU gets a small network and few images, to try it out."""
    small = resolve_device(device).type == "cpu"
    return [Task(PART, PRESET, f"{__name__}:measure", {"device": device, "small": small})]
