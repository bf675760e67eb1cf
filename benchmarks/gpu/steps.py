"""Examples a second of single training steps: loss, gradient and optimizer of a preset's model, without a federation.

The steps are those that servers and clients take: the same data on the device, the same graph, the same precision. What
a run adds to them (messages, tests, checkpoints) is in the part ``throughput``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count

import torch

from benchmarks.gpu.rows import Row
from benchmarks.gpu.schedule import Task
from benchmarks.gpu.timing import seconds_of
from fedlab import launch
from fedlab.cuda_graphs import GraphedLoss
from fedlab.data.random_batches import RandomBatches
from fedlab.optimizers import Adam, FusedAdam
from fedlab.precision import computing_in
from fedlab.seeds import deterministic, seeded
from fedlab.strategies.source_only import made
from fedlab.training import resolve_device, to_training_device

PART = "steps"
WARMUP, STEPS, PLAIN_STEPS = 4, 40, 10


@dataclass(frozen=True)
class Case:
    """A preset, who trains its model, what is counted, and the goal on one H100."""

    preset: str
    side: str
    unit: str
    goal: float | None = None


CASES: Mapping[str, Case] = {
    "graphnvp": Case("graphnvp-qm9-paper", "server", "molecules/s", 25_000),
    "mpgvae": Case("mpgvae-qm9-paper", "server", "molecules/s", 25_000),
    "ddpm": Case("ddpm-cifar10", "client", "images/s", 2500),
    "mixer": Case("mixer-cifar10-central", "server", "images/s"),
    "mcd": Case("dualadapt-digits-mcd", "server", "images/s"),
}
WAYS: Mapping[str, tuple[str, bool]] = {  # precision, CUDA graphs
    "float32, kernel by kernel": ("float32", False),
    "tf32": ("tf32", True),
    "bf16": ("bf16", True),
}


def throughput(case: Case, device: torch.device, precision: str, graphs: bool, steps: int, batch: int = 0) -> float:
    """Return the examples a second of a preset's training steps.

    Raises
    ------
    DataError
        When the preset's data is not here.
    """
    config = launch.prepare(case.preset, {"data.num_clients": 1, "device": str(device)})
    workload, size = config.workload, batch or getattr(config, case.side).batch_size
    with deterministic(2), computing_in(precision, device), seeded(0, "steps"):
        model = to_training_device(workload.model(), device).train()
        data = workload.data(None if case.side == "server" else 0, "train").on_device(device)
        batches, numbers, is_server = RandomBatches(data, size, device), count(), case.side == "server"
        objective = GraphedLoss(workload.loss, model, graphs, partial(made, batches) if is_server else None)
        optimizer = (FusedAdam if device.type == "cuda" else Adam)(model.parameters(), 1e-4)

        def loss() -> torch.Tensor:
            return objective(batches.draw_at("batch", next(numbers)) if is_server else data.sample_batch(size))

        seconds_of(loss, optimizer, WARMUP if device.type == "cuda" else 1, device)
        return steps * size / seconds_of(loss, optimizer, steps, device)


def measure(name: str, device: str, steps: int = 0, batch: int = 0) -> Iterator[Row]:
    """Yield a preset's rows: float32 kernel by kernel first, then the other ways beside it."""
    case, where, reference = CASES[name], resolve_device(device), 0.0
    for way, (precision, graphs) in WAYS.items():
        taken = steps or (STEPS if graphs else PLAIN_STEPS)
        value = throughput(case, where, precision, graphs, taken, batch)
        what = f"{case.preset}, {way}"
        if not reference:
            reference = value
            yield Row(PART, what, value, case.unit)
        else:
            yield Row(PART, what, value, case.unit, case.goal, reference="kernel by kernel", reference_value=reference)


def tasks(device: str, seconds: float, runs: object) -> list[Task]:
    """Return a task for each preset; a CPU gets one step of a small batch, to try them out."""
    small = {"steps": 1, "batch": 8} if resolve_device(device).type == "cpu" else {}
    return [
        Task(PART, case.preset, f"{__name__}:measure", {"name": name, "device": device, **small})
        for name, case in CASES.items()
    ]
