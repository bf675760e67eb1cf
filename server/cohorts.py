"""Samplers of the clients that a run's rounds ask."""

from __future__ import annotations

from fedlab.comm.sampling import Sampler, read_schedule
from fedlab.config.schema import Config
from fedlab.workload import Workload


def samplers(workload: Workload, config: Config, *, secret: bool = False) -> tuple[Sampler, Sampler]:
    """Return the samplers of clients that train, and of those that are tested; the former in secret if asked for."""
    run, names = config.run, dict(enumerate(config.clients))
    weighted = run.sampling == "examples" and run.fraction_train < 1
    sizes = {partition: len(workload.data(partition, "train")) for partition in names} if weighted else {}
    schedule = read_schedule(run.schedule, names, run.rounds) if run.schedule else []
    train = Sampler(run.seed, run.fraction_train, sizes, schedule, secret)
    return train, Sampler(run.seed, run.fraction_evaluate, only_connected=bool(schedule))
