"""Clients a second, a thousand of them in each round: through the framework, vectorized, and in a plain loop."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.client_systems import Clock, Work, fedlab_engine, plain_loop, vmap_by_hand
from benchmarks.gpu.rows import Row
from benchmarks.gpu.schedule import Task
from fedlab.training import resolve_device

PART = "clients"
GOALS = {"mlp": 20_000.0, "cnn": 1500.0}  # on one H100
COHORT, ROUNDS = 1000, 4
LOOPED = 100  # clients of a round of the plain loop


def rate(clock: Clock, cohort: int) -> float:
    """Return the clients a second of the fastest round after the first."""
    return cohort / min(clock.seconds[1:] or clock.seconds)


def measure(network: str, device: str, cohort: int = COHORT, rounds: int = ROUNDS) -> Iterator[Row]:
    """Yield the rows of one network: a plain loop, stacked clients without a framework, and ours beside the loop."""
    looped = min(LOOPED, cohort)
    loop = rate(plain_loop(Work(network, COHORT, looped, 2, device)), looped)
    yield Row(PART, f"{network}, plain torch loop", loop, "clients/s")
    work = Work(network, cohort, cohort, rounds, device)
    by_hand = rate(vmap_by_hand(work, at_once=cohort), cohort)
    yield Row(
        PART, f"{network}, torch.func.vmap by hand", by_hand, "clients/s", reference="plain loop", reference_value=loop
    )
    for vectorize in (str(cohort), "auto"):
        ours = rate(fedlab_engine("inprocess", vectorize)(work), cohort)
        what = f"{network}, {cohort:,} clients a round, vectorize={vectorize}"
        yield Row(PART, what, ours, "clients/s", GOALS[network], reference="plain loop", reference_value=loop)


def tasks(device: str, seconds: float, runs: Path) -> list[Task]:
    """Return a task for each network; a CPU gets few clients, to try it out."""
    small = {"cohort": 20, "rounds": 2} if resolve_device(device).type == "cpu" else {}
    return [
        Task(PART, network, f"{__name__}:measure", {"network": network, "device": device, **small}) for network in GOALS
    ]
