"""The parts of the benchmark, what of them is asked for, and the time that each gets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.gpu import clients, gpu_tests, long, right, rounds, steps, throughput
from benchmarks.gpu.schedule import Task
from fedlab.config.sections import Value
from fedlab.errors import ConfigError, suggest


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
    "tests": Part(gpu_tests.tasks, 1, 0.7),
}
USUAL = tuple(name for name in PARTS if name != "tests")


@dataclass(frozen=True)
class Item:
    """A part of the benchmark, or those of its tasks whose name contains ``match``, with options of its long runs."""

    part: str
    match: str = ""
    weight: float = 0.0
    settings: Mapping[str, Value] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """Return its weight when the time is divided."""
        return self.weight or PARTS[self.part].weight


QUARTER = "quarter"
# A quarter of an hour, in the order of what is not yet known: the first hold if the time is over.
ORDER = (
    Item("tests", weight=0.5),
    Item("long", "mixer-cifar10-central", 6.0),
    Item("long", "graphnvp-qm9-paper", 3.0, {"server.final_lr_fraction": 0.02}),
    Item("long", "mpgvae-qm9-paper", 2.0),
    Item("clients", weight=0.8),
    Item("rounds", weight=0.7),
)


def items_of(names: Iterable[str], match: str, settings: Mapping[str, Value]) -> list[Item]:
    """Return what is asked for by name: ``PART``, ``PART:TEXT`` for some of its tasks, or ``quarter`` for ORDER.

    Raises
    ------
    ConfigError
        When there is no such part.
    """
    found = list[Item]()
    for name in names:
        part, _, text = name.partition(":")
        if name == QUARTER:
            found += [replace(item, settings={**item.settings, **settings}) for item in ORDER]
        elif part in PARTS:
            found.append(Item(part, text or match, settings=settings))
        else:
            raise ConfigError(f"no part {part!r}; {suggest(part, [*PARTS, QUARTER])}")
    return found


def allotment(left: float, items: list[Item], number: int) -> float:
    """Return the seconds of an item: what is left, divided by weight among it and those after it.

    >>> items = [Item("steps", weight=1.0), Item("long", weight=2.0)]
    >>> allotment(90.0, items, 0), allotment(80.0, items, 1)
    (30.0, 80.0)
    """
    return max(0.0, left) * items[number].share / sum(item.share for item in items[number:])


def tasks_of(item: Item, device: str, seconds: float, runs: Path, processes: int, planned: float) -> list[Task]:
    """Return an item's tasks, each with its share of the time; ``planned`` are the seconds of a run in all calls."""
    part = PARTS[item.part]
    own = {"settings": dict(item.settings), "planned": planned} if part.by_time else {}

    def matching(share: float) -> list[Task]:
        found = part.tasks(device, share, runs)
        return [replace(task, options={**task.options, **own}) for task in found if item.match in task.what]

    tasks = matching(seconds)
    turns = math.ceil(len(tasks) / processes)
    return matching(seconds / turns) if part.by_time and turns > 1 else tasks
