"""Every preset and every strategy for one tiny round, twice: it ends, and both times with the same bits."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path

import fedlab
from benchmarks.gpu.rows import Row
from benchmarks.gpu.schedule import Task
from benchmarks.gpu.tiny import LIGHT, SHORT, TINY_DATA, tiny_round
from fedlab import registry
from fedlab.config.presets import preset_names
from fedlab.config.sections import Value
from fedlab.errors import ConfigError, DataError
from fedlab.tables import STRATEGIES

PART = "right"
TIMES = 2
STEPS = 3  # of each kind at least: a CUDA graph is captured at the second, and replayed from then on
# What a strategy needs beyond that: steps for each of its kinds, or another workload.
OWN: Mapping[str, Mapping[str, Value]] = {
    "adacontrast": {"adacontrast.steps": 3, "adacontrast.batch_size": 8},
    "dualadapt": {"dualadapt.em_steps": 3},
    "fed_adacontrast": {"fed_adacontrast.steps": 3, "fed_adacontrast.batch_size": 8},
    "fed_mcd": {"client.steps": 6},
    "fed_shot": {"fed_shot.epochs": 1.0, "fed_shot.batch_size": 32},
    "shot": {"shot.epochs": 1.0, "shot.batch_size": 32},
    "source_free": {"source_free.steps": 3, "source_free.batch_size": 8, "source_free.min_examples_per_class": 0},
    "startup": {"workload": "fewshot", **TINY_DATA["fewshot"]},
}
Case = tuple[str | dict[str, Value], dict[str, Value]]  # preset, overrides


def strategy_round(name: str) -> dict[str, Value]:
    """Return the options of one tiny round of a strategy, by name: digits of five domains, or parts of one."""
    spec, own = registry.find("strategy", name).spec, OWN.get(name, {})
    if "workload" in own:
        return {**SHORT, "strategy": name, **own}
    clients: Mapping[str, Value] = (
        {"digits.setting": "shards", "data.num_clients": 5, "data.partition": "iid"}
        if spec.needs_client_labels
        else {"digits.targets": "usps,mnist_m,optdigits,synthdigits"}
    )
    return {**SHORT, **TINY_DATA["digits"], "workload": "digits", "strategy": name, **clients, **own}


def cases() -> dict[str, Case]:
    """Return all that is run, by its name."""
    presets: dict[str, Case] = {f"preset {name}": (name, tiny_round(name)) for name in sorted(preset_names())}
    strategies: dict[str, Case] = {f"strategy {name}": ({}, strategy_round(name)) for name in sorted(STRATEGIES)}
    return presets | strategies


def final_weights(case: str, device: str) -> tuple[str, float]:
    """Run a case in this process, and return the SHA-256 of its final weights and metrics and the seconds that it took.

    Metrics are those of models that clients keep, too, which are no part of the final weights.

    Raises
    ------
    FedlabError
        When the run does not end.
    """
    preset, overrides = cases()[case]
    steps = {f"{side}.steps": max(STEPS, int(overrides[f"{side}.steps"])) for side in ("server", "client")}
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as runs:
        # The first engine that carries messages in this process: what is asked is what the device does.
        options = {**overrides, **steps, "engine": "inprocess", "device": device}
        if "molecules.samples" in options:
            options["molecules.pictures"] = False  # drawing needs libraries of a desktop
        result = fedlab.run(preset, runs=Path(runs), overrides=options)
        metrics = [[line[of] for of in ("clients", "mean", "server", "score")] for line in result.rounds]
        content = json.dumps([result.manifest["weights_sha256"], metrics], sort_keys=True)
        return sha256(content.encode()).hexdigest(), time.perf_counter() - begun


def check(case: str, device: str) -> Iterator[Row]:
    """Yield whether a case ends twice with the same bits; a set or package that is not here is no failure."""
    try:
        found = [final_weights(case, device) for _ in range(TIMES)]
    except (DataError, ConfigError) as missing:
        if isinstance(missing, ConfigError) and "not installed" not in str(missing):
            raise
        yield Row(PART, case, note=f"left out: {missing}"[:160])
        return
    hashes = [weights for weights, _ in found]
    error = "" if len(set(hashes)) == 1 else f"other bits: {' and '.join(text[:12] for text in hashes)}"
    yield Row(PART, case, found[-1][1], "s", error=error, note=hashes[0][:12], tally=True)


def tasks(device: str, seconds: float, runs: Path) -> list[Task]:
    """Return a task for each case; the slow ones first."""
    names = sorted(cases(), key=lambda case: case.removeprefix("preset ") not in LIGHT)
    return [Task(PART, case, f"{__name__}:check", {"case": case, "device": device}, tally=True) for case in names]
