"""Checks before a directory is made or a process is started: each refuses with a sentence that says what to do."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import nullcontext
from difflib import get_close_matches
from fnmatch import fnmatchcase

from fedlab.comm.sampling import read_schedule
from fedlab.config.lr_schedules import check_length
from fedlab.config.run_options import DEFAULT_STOP
from fedlab.config.schema import Config, parse_join_rounds
from fedlab.errors import ConfigError, DataError, NoServerDataError, name_list, plural
from fedlab.machine import check_threads
from fedlab.plugins import exists_here_only
from fedlab.registry import strategies_that_use
from fedlab.runs.metrics import MetricTable
from fedlab.seeds import deterministic
from fedlab.trackers.opening import tracker_names
from fedlab.training import null_progress, resolve_device
from fedlab.workload import SupportsScoring, Workload, missing_columns, unused_options


def check(config: Config, given: Collection[str] = (), strategy_is_named: bool = True) -> None:
    """Refuse what could not run, and what would not do what a user asks for; options first, then data.

    Parameters
    ----------
    given
        Options that the user sets; those of a preset, which may be made for several runs, are not among them.
    strategy_is_named
        False if the strategy is the default because neither the user nor the preset names one.

    Raises
    ------
    ConfigError, DataError
        With a sentence.
    """
    check_effect(config, given)
    check_options(config)
    try:
        with deterministic(config.run.threads) if "threads" in given else nullcontext():
            check_strategy(config, given)
    except (ConfigError, DataError) as error:
        if strategy_is_named:
            raise
        raise type(error)(
            f"{error} ({config.run.strategy!r} is the default strategy, since none was named; set strategy=NAME, see "
            "`fedlab list strategies`)"
        ) from None


def check_effect(config: Config, given: Collection[str]) -> None:
    """Refuse an option that a user sets and nothing in this run reads.

    Raises
    ------
    ConfigError
        With the option, and why it has no effect.
    """
    reasons = unused(config)
    patience = [] if config.stop == DEFAULT_STOP else ["stop.patience"]  # of a preset too: it belongs to one option
    for option in (*given, *patience):
        if option in reasons:
            others = strategies_that_use(option) if option in config.plugins["strategy"].spec.ignores else []
            remedy = f"; it has an effect with the strategies {name_list(others)}" if others else ""
            raise ConfigError(f"option {option!r} has no effect in this run: {reasons[option]}{remedy}")


def unused(config: Config) -> dict[str, str]:
    """Return the options that have no effect with the others, each with the reason and what to do."""
    run, client, strategy = config.run, config.client, config.plugins["strategy"].spec
    found = {
        **dict.fromkeys(
            unused_options(config.workload),
            f"workload {run.workload!r} with these options does not depend on it; leave it out",
        ),
        **dict.fromkeys(strategy.ignores, f"the steps of strategy {run.strategy!r} do not depend on it; leave it out"),
    }
    if not config.stop.metric:
        found["stop.patience"] = "it is the patience with stop.metric; set stop.metric=accuracy, for example"
    if not run.track:
        remedy = "it is for the trackers in track; set track=mlflow, for example"
        found |= {"track_project": remedy, "track_group": remedy}
    if not client.evaluate:
        found["fraction_evaluate"] = "client.evaluate is false, so no client tests; leave one of them out"
    if client.epochs:
        found["client.steps"] = f"client.epochs={client.epochs:g} says how long clients train; keep one of them"
    if client.optimizer == "adam":
        found["client.momentum"] = "it is of SGD, and client.optimizer is adam; leave it out"
    if not isinstance(config.workload, SupportsScoring):
        found["sample_every"] = f"workload {run.workload!r} generates no samples; see evaluate_every"
    if config.plugins["engine"].spec.simulates_clients:
        found["comm.attempts"] = "simulated clients do not come back, so that each phase has one attempt; leave it out"
    if run.compile and run.device == "cpu" and config.plugins["engine"].spec.simulates_clients:
        found["compile"] = "networks are compiled on a GPU, and this run's device is the CPU; leave it out"
    return found


def check_options(config: Config) -> None:
    """Refuse options that contradict each other or name what is not there; no example is read.

    Raises
    ------
    ConfigError
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
        raise ConfigError(f"min_clients={run.min_clients} is more than the run's {plural(len(names), 'client')}")
    for partition, number in parse_join_rounds(run.join_rounds, dict(enumerate(names))).items():
        if number > run.rounds:
            raise ConfigError(
                f"option 'join_rounds': {names[partition]} would join in round {number}, and the run has "
                f"{run.rounds}; name an earlier round, or raise rounds"
            )
    check_participation(config)
    for section, options in (("server", config.server), ("client", config.client)):
        if f"{section}.lr_schedule" not in config.plugins["strategy"].spec.ignores:
            check_length(section, options, run.rounds)
    check_stop_metric(config)
    tracker_names(run.track)
    if config.data.label_smoothing and not config.plugins["workload"].spec.smooths_labels:
        raise ConfigError(
            f"option 'data.label_smoothing': the loss of workload {run.workload!r} is no cross-entropy of labels that "
            "could be smoothed, or does not say so (smooths_labels of its WorkloadSpec); set it to 0"
        )
    config.plugins["engine"].spec.validate(config.engine)
    _check_reach(config)


def declared_metrics(config: Config) -> MetricTable:
    """Return the metrics and phases that a run's strategy and workload declare, with those of all runs."""
    return MetricTable.declared(config.plugins["strategy"].spec, config.plugins["workload"].spec)


def check_stop_metric(config: Config) -> None:
    """Refuse a metric to stop by that neither workload nor strategy declares with a direction.

    Raises
    ------
    ConfigError
        With all that can be named.
    """
    name, known = config.stop.metric, declared_metrics(config).judged()
    if name and not any(fnmatchcase(name, pattern) for pattern in known):
        close = get_close_matches(name, known, n=1)
        raise ConfigError(
            f"option 'stop.metric': {name!r} is none of the metrics and groups of metrics that workload "
            f"{config.run.workload!r} and strategy {config.run.strategy!r} declare, with the direction that is better: "
            f"{', '.join(known)}{f'; did you mean {close[0]!r}?' if close else ''}"
        )


def check_strategy(config: Config, given: Collection[str]) -> None:
    """Read the data that this machine has, and refuse what the strategy cannot do with it.

    Raises
    ------
    ConfigError, DataError
        With a sentence.
    """
    run, workload, strategy = config.run, config.workload, config.plugins["strategy"].spec
    check_client_data(config)
    try:
        check_server_data(config)
        privacy = strategy.server(workload, config, null_progress).privacy()
    except NoServerDataError as error:
        raise NoServerDataError(_who_needs_server_data(config, str(error))) from None
    if config.dp.max_epsilon and privacy is None:
        raise ConfigError(
            f"option 'dp.max_epsilon': strategy {run.strategy!r} with these options adds no noise, so no budget can "
            "hold; use dp_fixed, dp_adaptive or dualadapt.local_privacy, with a noise_multiplier"
        )
    for option in {"dp.noise", "dp.delta"} & set(given):
        if privacy is None:
            raise ConfigError(
                f"option {option!r} has no effect in this run: strategy {run.strategy!r} with these options adds no "
                "noise; leave it out"
            )


def check_client_data(config: Config) -> None:
    """Read what each client has, and refuse clients without the labels that the strategy needs.

    The server of deployed clients often has not what they have; what it does have is the same as theirs. So a set that
    cannot be divided as the options ask is refused here, and not by each client.

    Raises
    ------
    ConfigError, DataError
        With the clients; DataError of simulated ones only.
    """
    run, workload, names = config.run, config.workload, config.clients
    simulated = config.plugins["engine"].spec.simulates_clients
    unlabeled: list[str] = []
    for partition, name in enumerate(names):
        try:
            workload.data(partition, "test")
            unlabeled += [name] if missing_columns(workload, workload.data(partition, "train")) else []
        except DataError:
            if simulated:
                raise
    if config.plugins["strategy"].spec.needs_client_labels and unlabeled:
        table = config.plugins["workload"].spec.oracle_overrides
        bound = ", ".join(f"{key}={str(value).lower()}" for key, value in table.items())
        who = "the clients" if len(unlabeled) == len(names) else f"{len(unlabeled)} of the {len(names)} clients"
        raise ConfigError(
            f"strategy {run.strategy!r} trains on the clients' own labels, and {who} of this workload "
            f"({name_list(unlabeled)}) have none; set strategy=source_only, or one that needs none (`fedlab list "
            f"strategies`){f', or for an upper bound {bound}' if bound else ''}"
        )


def check_server_data(config: Config) -> None:
    """Read what the server tests on and what a first model is trained on.

    Raises
    ------
    ConfigError, DataError
        When it is not there, or has no labels.
    """
    run, workload = config.run, config.workload
    if config.server.evaluate:
        workload.data(None, "test")
    if config.server.pretrain_steps and missing_columns(workload, workload.data(None, "train")):
        raise ConfigError(
            f"strategy {run.strategy!r} trains on labeled source data, and the server's data of workload "
            f"{run.workload!r} has no labels"
        )


def _who_needs_server_data(config: Config, error: str) -> str:
    name, steps = config.run.strategy, config.server.pretrain_steps
    if "server.lr_schedule" not in config.plugins["strategy"].spec.ignores:  # it takes steps in rounds
        return (
            f"strategy {name!r} trains on labeled examples of the server: {error}, or set server.pretrain_steps=0 and "
            "a strategy without steps on the server, for example strategy=fedavg where clients have labels"
        )
    if steps:
        return (
            f"strategy {name!r} begins with a model that is trained on the server's examples "
            f"(server.pretrain_steps={steps}): {error}, or set server.pretrain_steps=0"
        )
    return f"server.evaluate=true tests on the server's examples: {error}, or set server.evaluate=false"


def clients_have_labels(workload: Workload) -> bool:
    """Return True if clients hold all that the workload's loss reads, labels where it takes any."""
    return not missing_columns(workload, workload.data(0, "train"))


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
    if run.vectorizes and not engine.spec.vectorizes:
        raise ConfigError(
            f"vectorize={run.vectorize} trains several clients of a process at once, and engine {engine.reference!r} "
            "has a process for each; use engine=local, inprocess or pool"
        )
    if run.sampling == "examples" and not config.plugins["engine"].spec.simulates_clients:
        raise ConfigError(
            "sampling=examples needs the clients' numbers of examples, which the server of deployed clients does not "
            "have; use sampling=uniform"
        )
