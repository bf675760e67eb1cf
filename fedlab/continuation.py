"""Going on with a run: for longer if asked for, and otherwise with the options that it began with.

The manifest has the options at the start (``options``). An option that decides what a run computes may not change
between two starts of one run, whether in ``config.toml`` or on the command line: its results would be of neither value.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from fedlab.config.presets import read_preset
from fedlab.config.schema import Config
from fedlab.config.sections import Overrides, Value
from fedlab.errors import ConfigError, FedlabWarning, plural
from fedlab.files import write_atomically
from fedlab.registry import find, load_config
from fedlab.runs.directory import RunDirectory
from fedlab.runs.manifest import check_is_ours, versions
from fedlab.runs.numerics import numerics_of, warn_of_different

LENGTH = frozenset({"rounds", "budget_bytes", "budget_seconds", "stop.metric", "stop.patience"})
"""Options that say when a run ends."""
SCHEDULE = "final_lr_fraction"  # last part of an option by which learning rates fall towards the last round
FREE = LENGTH | {
    *("name", "engine", "device", "min_clients", "data.root", "checkpoint.keep", "checkpoint.keep_initial"),
    *("checkpoint.pretrain_cache", "comm.connect_timeout", "comm.idle_timeout", "comm.round_timeout"),
    *("comm.attempts", "comm.max_reply_mb", "sample_every", "report", "track", "track_project", "track_group"),
}
"""Options that say how a run is carried out or for how long, and not what a round computes."""


class ResumeWarning(FedlabWarning):
    """Warning that a resumed run is not, or may not be, what one without a break would have been."""


def continuation(directory: RunDirectory, overrides: Overrides) -> Config | None:
    """Return the configuration with which a run goes on, None for a finished one that is not to be longer.

    Nothing is written.

    Parameters
    ----------
    overrides
        Options to change, as ``{"rounds": 8}``.

    Raises
    ------
    ConfigError
        When an option that changes results was changed, or when there would be fewer rounds than are done.
    RunError
        When the run cannot go on, because its state is that of another program.
    """
    manifest = directory.manifest()
    began, finished = manifest.get("options"), manifest.get("status") == "finished"
    written = read_preset(str(directory.config_file))[1]
    if finished and not overrides and began in (None, written):
        return None
    check_is_ours(directory.path)
    config = load_config(written, overrides)
    if began is not None:  # else made by an older version
        _check_unchanged(directory, began, config)
    done = max(directory.checkpoints.rounds(), default=0)
    if config.run.rounds < done:
        raise ConfigError(
            f"rounds={config.run.rounds}, and this run has done {done}; set rounds to {done} or more, or start another "
            f"run: `fedlab run {directory.config_file} rounds={config.run.rounds}`"
        )
    if finished and config.run.rounds == done:
        return None
    changed = {key for key in LENGTH if began is None or began.get(key) != config.options()[key]}
    return config if not finished or changed - ({"rounds"} if manifest.get("ended_by") != "rounds" else set()) else None


def record_continuation(directory: RunDirectory, config: Config) -> None:
    """Write the configuration with which a run goes on into its directory, where it is another than before.

    Raises
    ------
    RunError
        When another process writes the run.

    Warns
    -----
    ResumeWarning, DifferentMachinesWarning
        When the result is not, or may not be, that of a run that was never interrupted.
    """
    began, options = directory.manifest().get("options", {}), config.options()
    changed = {key for key in options if began.get(key, options[key]) != options[key]}
    scheduled = [f"option {key!r}" for key, value in options.items() if key.endswith(f".{SCHEDULE}") and value != 1]
    if config.plugins["strategy"].spec.depends_on_rounds:
        scheduled.append(f"strategy {config.run.strategy!r}")
    if scheduled and "rounds" in changed:
        _warn(
            f"{scheduled[0]} makes each round depend on the number of rounds, which was {began['rounds']} and is "
            f"{config.run.rounds} now: the result is not that of a run of {plural(config.run.rounds, 'round')} from "
            "its start"
        )
    if "device" in changed:
        _warn(f"device was {began['device']} and is {options['device']} now: the bits are not those of one device")
    here = {"numerics": numerics_of(config.run), "versions": versions()}
    warn_of_different(directory.manifest(), here, f"{directory.path.name} began, and goes on,")
    with directory:
        write_atomically(directory.config_file, config.to_toml().encode())
        directory.update_manifest(options=options, rounds=config.run.rounds, engine=config.run.engine, engine_chosen="")
        if directory.manifest().get("status") == "finished":
            directory.update_manifest(status="interrupted", weights_sha256="")


def _check_unchanged(directory: RunDirectory, began: Mapping[str, Value], config: Config) -> None:
    options = config.options()
    engines = {config.plugins["engine"].section, find("engine", str(began["engine"])).section}
    for key in sorted(began.keys() | options.keys(), key=lambda key: ("." in key, key)):
        if key in FREE or key.partition(".")[0] in engines or began.get(key) == options.get(key):
            continue
        before, now = (repr(table[key]) if key in table else "not there" for table in (began, options))
        raise ConfigError(
            f"option {key!r} was {before} when this run began and would be {now} from here on, which changes its "
            f"results; set it back in {directory.config_file} or on the command line, or start another run: "
            f"`fedlab run {directory.config_file} {key}=...`"
        )


def _warn(sentence: str) -> None:
    warnings.warn(sentence, ResumeWarning, stacklevel=3)
