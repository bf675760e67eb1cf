"""A training of each long preset by time, not by rounds; its run folder stays, so that ``fedlab resume`` goes on.

A learning rate that falls over the rounds has fallen only at the last one. So where a preset has such a rate, a few
rounds show first how long one takes, and the run gets as many as its time has room for: that of this call, or with
``--planned-minutes`` that of several calls, which may be on several machines.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import fedlab
from benchmarks.gpu.rows import Row
from benchmarks.gpu.schedule import Task
from fedlab import launch
from fedlab.checks import declared_metrics
from fedlab.config.schema import Config
from fedlab.config.sections import Value
from fedlab.errors import DataError
from fedlab.runs.directory import RunDirectory
from fedlab.runs.result import Result
from fedlab.training import resolve_device

PART = "long"
SEED = 0
START = 8.0  # seconds of a part until a process has imported all
CLOSING = 17.0  # seconds of a part for the last test, the last scores and the page of the run
TRIAL_ROUNDS = 3  # the first of them warms up
TRIAL_STEPS = 100  # of the server in a trial round, at most: a round of GraphNVP takes seven seconds
SPARE = 0.05  # fraction of the time that is not given to rounds, for what is between them
RARELY = 1_000_000  # rounds between two checkpoints: the last round has one anyway
LATE: Mapping[str, Value] = {"sample_every": RARELY}  # samples are scored in the last round alone
MOLECULES: Mapping[str, Value] = {
    **LATE,
    "molecules.pictures": False,  # drawing needs libraries of a desktop
    "checkpoint.every": 5,  # rounds of some seconds, which a process that is stopped loses
}
# Presets, what is set for a run by time, and the metrics that are told, each with its goal and that goal's origin.
PRESETS: Mapping[str, tuple[Mapping[str, Value], Mapping[str, float | None]]] = {
    "graphnvp-qm9-paper": (MOLECULES, {"validity": 0.831, "uniqueness": 0.992, "novelty": 0.582}),
    "mpgvae-qm9-paper": (MOLECULES, {"validity": 0.91, "uniqueness": 0.68, "novelty": 0.54}),
    "mixer-cifar10-central": ({}, {"accuracy": 0.88}),
    "dualadapt-digits-mcd": (
        {"dualadapt.source_only_twin": False},
        {"accuracy_local": 0.93, "accuracy_average": None, "accuracy_global": None},
    ),
    # Rounds of the preset take minutes, and time is looked at between two.
    "ddpm-cifar10": (
        {**LATE, "client.steps": 50, "rounds": 16_000, "generation.sampling_steps": 50},
        {"frechet": None},
    ),
    "startup-tiny": ({"server.pretrain_steps": 2400, "server.steps": 20, "client.steps": 20, "rounds": 500}, {}),
}


def train(
    preset: str,
    device: str,
    seconds: float,
    runs: str,
    small: bool = False,
    settings: Mapping[str, Value] | None = None,
    planned: float = 0.0,
) -> Iterator[Row]:
    """Yield the metrics of a preset so many seconds from now, of a run that goes on where it was.

    ``settings`` are further options of the run, and ``planned`` the seconds that it is to get in all calls together.
    """
    end, folder = time.monotonic() + seconds - CLOSING, Path(runs) / folder_of(preset)
    overrides = {**overrides_of(preset, device), **(tiny(preset) if small else {}), **(settings or {})}
    try:
        config = launch.prepare(preset, overrides)  # reads the data, which takes time: the run below has it then
        if folder.exists():
            phases = declared_metrics(config).evaluation_phases
            before = sum(training_seconds(line, phases) for line in RunDirectory.open(folder).rounds())
            result = fedlab.resume(
                folder, overrides={**moved(device), **(settings or {}), "budget_seconds": before + seconds_until(end)}
            )
        else:
            pace = paced(preset, overrides, seconds_until(end), planned)
            result = fedlab.run(
                preset, runs=Path(runs), overrides={**overrides, "budget_seconds": seconds_until(end), **pace}
            )
    except DataError as missing:
        yield Row(PART, preset, note=f"left out: {missing}"[:160])
        return
    yield from rows_of(preset, result, PRESETS[preset][1])


def folder_of(preset: str) -> str:
    """Return the name of a preset's run folder, as fedlab names it."""
    return f"{preset}-{SEED}"


def seconds_until(end: float) -> float:
    """Return the seconds until a time of the monotonic clock, at least one."""
    return max(1.0, end - time.monotonic())


def training_seconds(line: Mapping[str, Any], left_out: Collection[str]) -> float:
    """Return the seconds of a round that count for a budget: all but those of some phases."""
    return sum(float(value) for phase, value in line["seconds"].items() if phase not in left_out)


def moved(device: str) -> dict[str, Value]:
    """Return where a run goes on, which may be another machine than where it began."""
    folder, place = os.environ.get("FEDLAB_DATA", ""), dict[str, Value](device=device)
    return {**place, "data.root": folder} if folder else place


def overrides_of(preset: str, device: str) -> dict[str, Value]:
    """Return what is set for a run by time, but the time."""
    return {
        "seed": SEED,
        "evaluate_every": RARELY,
        "engine": "inprocess",
        "device": device,
        "checkpoint.keep": 1,
        "checkpoint.every": 20,
        **PRESETS[preset][0],
    }


def paced(preset: str, overrides: Mapping[str, Value], seconds: float, planned: float = 0.0) -> dict[str, Value]:
    """Return the rounds and the budget with which a run ends within so many seconds from now, trial rounds included.

    Nothing where no learning rate falls with the rounds, and at most the preset's own number of rounds. With
    ``planned`` the rounds are those that fit so many seconds, and the budget ends the run before the last of them.

    Raises
    ------
    DataError
        When the preset's data is not here.
    """
    begun, config = time.monotonic(), launch.prepare(preset, overrides)
    if not falls_with_rounds(config):
        return {}
    warmups = {f"{side}.lr_warmup_rounds": getattr(config, side).lr_warmup_rounds for side in ("server", "client")}
    steps = min(config.server.steps, TRIAL_STEPS)
    with tempfile.TemporaryDirectory() as runs:
        short: dict[str, Value] = {key: 0 for key, rounds in warmups.items() if rounds}
        trial = fedlab.run(
            preset,
            runs=Path(runs),
            overrides={**overrides, **short, "rounds": TRIAL_ROUNDS, "server.steps": steps},
        )
    one = min(
        training_seconds(line, {"evaluate", "score"}) + line["seconds"]["server"] * (config.server.steps / steps - 1)
        for line in trial.rounds[2:]
    )
    shortest = 2 + max(warmups.values())
    left = seconds - (time.monotonic() - begun)
    fitting = max(shortest, int((1 - SPARE) * max(left, planned) / one))
    return {"rounds": min(config.run.rounds, fitting), "budget_seconds": max(1.0, left)}


def falls_with_rounds(config: Config) -> bool:
    """Return True if a learning rate falls from the first to the last round."""
    return min(config.server.final_lr_fraction, config.client.final_lr_fraction) < 1


def tiny(preset: str) -> dict[str, Value]:
    """Return what makes rounds short, to try a preset out."""
    from benchmarks.gpu.tiny import tiny_round

    return {key: value for key, value in tiny_round(preset).items() if key != "rounds"}


def rows_of(preset: str, result: Result, goals: Mapping[str, float | None]) -> Iterator[Row]:
    """Yield a run's length, and its last round's metrics that have a goal or else the first few."""
    last = result.rounds[-1]
    spent = sum(sum(line["seconds"].values()) for line in result.rounds)
    phases: dict[str, float] = {}
    for line in result.rounds[1:]:
        for phase, value in line["seconds"].items():
            phases[phase] = phases.get(phase, 0.0) + value
    note = ", ".join(f"{phase} {value:.1f} s" for phase, value in phases.items())
    yield Row(PART, f"{preset}, rounds in {spent:.0f} s", float(last["round"]), note=note)
    metrics = {**last["mean"], **last["score"]}
    told = [name for name in metrics if name in goals] or list(metrics)[:3]
    for name in told:
        yield Row(PART, f"{preset}, {name}", metrics[name], goal=goals.get(name), note=f"round {last['round']}")
    others = {name: round(value, 4) for name, value in metrics.items() if name not in told}
    if others:
        yield Row(PART, f"{preset}, other metrics", note=json.dumps(others))


def tasks(device: str, seconds: float, runs: Path) -> list[Task]:
    """Return a task for each preset; all train at once, each in a process of its own."""
    small = resolve_device(device).type == "cpu"
    options = {"device": device, "seconds": max(1.0, seconds - START), "runs": str(runs), "small": small}
    return [Task(PART, preset, f"{__name__}:train", {"preset": preset, **options}) for preset in PRESETS]
