"""Checks before a directory is made or a process is started: each refuses with a sentence that says what to do."""

from __future__ import annotations

from fedlab.comm.sampling import read_schedule
from fedlab.config.schema import Config, parse_join_rounds
from fedlab.config.sections import Overrides
from fedlab.errors import ConfigError, name_list
from fedlab.machine import check_threads
from fedlab.plugins import exists_here_only
from fedlab.trackers.opening import tracker_names
from fedlab.training import null_progress, resolve_device
from fedlab.workload import Workload, missing_columns


def check_effect(config: Config, overrides: Overrides) -> None:
    """Refuse an option that a user sets and the strategy ignores; a preset may be made for several strategies.

    Raises
    ------
    ConfigError
        With the option.
    """
    ignored = sorted(config.plugins["strategy"].spec.ignores & overrides.keys())
    if ignored:
        raise ConfigError(
            f"option {ignored[0]!r} has no effect in this run: the steps of strategy {config.run.strategy!r} do not "
            "depend on it; leave it out"
        )


def clients_have_labels(workload: Workload) -> bool:
    """Return True if clients hold all that the workload's loss reads, labels where it takes any."""
    return not missing_columns(workload, workload.data(0, "train"))


def check(config: Config) -> None:
    """Refuse what could not run.

    Raises
    ------
    ConfigError, DataError
        With a sentence.
    """
    run, workload = config.run, config.workload
    resolve_device(run.device)
    check_threads(run.threads)
    partitions, names = workload.clients, config.clients
    if config.data.num_clients > len(partitions):
        raise ConfigError(
            f"data.num_clients={config.data.num_clients}, but workload {run.workload!r} has {len(partitions)} "
            f"partitions ({name_list(partitions)}); ask for at most {len(partitions)}"
        )
    if run.min_clients > len(names):
        raise ConfigError(f"min_clients={run.min_clients} is more than the {len(names)} clients of the run")
    for partition, number in parse_join_rounds(run.join_rounds, dict(enumerate(names))).items():
        if number > run.rounds:
            raise ConfigError(
                f"option 'join_rounds': {names[partition]} would join in round {number}, and the run has "
                f"{run.rounds}; name an earlier round, or raise rounds"
            )
    check_participation(config)
    tracker_names(run.track)
    if config.data.label_smoothing and not config.plugins["workload"].spec.smooths_labels:
        raise ConfigError(
            f"option 'data.label_smoothing': the loss of workload {run.workload!r} is no cross-entropy of labels that "
            "could be smoothed, or does not say so (smooths_labels of its WorkloadSpec); set it to 0"
        )
    engine, strategy = config.plugins["engine"].spec, config.plugins["strategy"].spec
    engine.validate(config.engine)
    _check_reach(config)
    if engine.simulates_clients:
        for partition in range(len(names)):
            for split in ("train", "test"):
                workload.data(partition, split)
        if strategy.needs_client_labels and not clients_have_labels(workload):
            table = config.plugins["workload"].spec.oracle_overrides
            bound = ", ".join(f"{key}={str(value).lower()}" for key, value in table.items())
            raise ConfigError(
                f"strategy {run.strategy!r} trains on the clients' own labels, and the clients of this workload "
                f"({name_list(partitions)}) have none; use source_only, or a strategy that needs none (`fedlab list "
                f"strategies`){f', or for an upper bound {bound}' if bound else ''}"
            )
    server = strategy.server(workload, config, null_progress)
    if config.dp.max_epsilon and server.privacy() is None:
        raise ConfigError(
            f"option 'dp.max_epsilon': strategy {run.strategy!r} with these options adds no noise, so no budget can "
            "hold; use dp_fixed, dp_adaptive or dualadapt.local_privacy, with a noise_multiplier"
        )


def _check_reach(config: Config) -> None:
    """Refuse objects that only this process has where clients are in other processes."""
    if config.plugins["engine"].spec.uses_objects:
        return
    for kind, plugin in config.plugins.items():
        if exists_here_only(plugin.reference):
            raise ConfigError(
                f"{kind} {plugin.reference!r} is an object of this process, and with engine={config.run.engine} "
                "clients are in other processes, which cannot find it; define it in a module that they can import and "
                "name it by its import path, pkg.module:Name, or set engine=inprocess"
            )


def check_participation(config: Config) -> None:
    """Refuse a sampling of clients that cannot be, and a run that measures nothing.

    Raises
    ------
    ConfigError
        With a sentence.
    """
    run = config.run
    if not config.client.evaluate and not config.server.evaluate:
        raise ConfigError("client.evaluate and server.evaluate are both false, so nothing would be measured; set one")
    if run.schedule:
        read_schedule(run.schedule, dict(enumerate(config.clients)), run.rounds)
        if run.fraction_train < 1 or run.sampling != "uniform":
            raise ConfigError(
                "option 'schedule' names the clients of each round, so fraction_train and sampling have no effect; "
                "leave them out"
            )
    engine = config.plugins["engine"]
    if run.clients_at_once and not engine.spec.vectorizes:
        raise ConfigError(
            f"vectorize={run.vectorize} trains several clients of a process at once, and engine {engine.reference!r} "
            "has a process for each; use engine=local, inprocess or pool"
        )
    if run.sampling == "examples" and not config.plugins["engine"].spec.simulates_clients:
        raise ConfigError(
            "sampling=examples needs the clients' numbers of examples, which the server of deployed clients does not "
            "have; use sampling=uniform"
        )
