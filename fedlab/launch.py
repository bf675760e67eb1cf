"""The composition root: from a preset's name to a finished run. It names the two apps, and imports neither.

Everything that can be refused is refused here, before a directory is made or a process is started.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from fedlab.checks import check, declared_metrics
from fedlab.config.presets import read_preset
from fedlab.config.resolve import build_config, with_options
from fedlab.config.schema import Config
from fedlab.config.sections import Overrides, Value
from fedlab.continuation import continuation, record_continuation
from fedlab.data.digits.datasets import data_root
from fedlab.data.sources import full_sets_advice
from fedlab.engines.spec import Apps
from fedlab.errors import RunError, os_error_sentence
from fedlab.registry import load_run_config, merge, plugins_of, preset_options
from fedlab.run_data import class_names, data_sources, partition_statistics
from fedlab.runs.directory import RunDirectory
from fedlab.runs.result import Result
from fedlab.torch_state import usual_torch_state
from fedlab.training import resolve_device

APPS = Apps(server="fedlab.server.app:app", client="fedlab.client.app:app")

Watch = Callable[[Path], AbstractContextManager[None]]


def no_progress(path: Path) -> AbstractContextManager[None]:
    """Return a context that shows no progress."""
    return nullcontext()


@usual_torch_state()
def prepare(preset: str | Mapping[str, Any], overrides: Overrides) -> Config:
    """Resolve the configuration of a run and check it: options, data, device, and that strategy and workload fit.

    Raises
    ------
    ConfigError, DataError
        With a sentence that says what came, what was expected and what to do.
    """
    config = resolve_config(preset, overrides)
    check(config, overrides, strategy_is_named="strategy" in {**preset_options(preset), **overrides})
    return config


def resolve_config(preset: str | Mapping[str, Any], overrides: Overrides) -> Config:
    """Resolve the configuration of a run, with places and device as they are on this machine; no data is read.

    Raises
    ------
    ConfigError, DataError
        As :func:`prepare`.
    """
    values = merge(preset, overrides)
    plugins = plugins_of(values)
    config = build_config(values, plugins)
    root = data_root(config.data.root)
    reachable = plugins["engine"].spec.clients_see_gpu(config.engine)
    cache = config.checkpoint.pretrain_cache
    here: dict[str, Value] = {
        "data.root": str(root.resolve()) if root else "",
        "device": str(resolve_device(config.run.device, reachable)),  # so that a resumed run keeps to it
        "checkpoint.pretrain_cache": str(Path(cache).resolve()) if cache else "",
        "schedule": str(Path(config.run.schedule).resolve()) if config.run.schedule else "",
    }
    return build_config({**values, **here}, plugins)


def with_device_of_this_machine(config: Config) -> Config:
    """Return a configuration that was resolved elsewhere with the device that its option ``device`` means here.

    Raises
    ------
    ConfigError
        When this machine has no such device.
    """
    reachable = config.plugins["engine"].spec.clients_see_gpu(config.engine)
    return with_options(config, {"device": str(resolve_device(config.run.device, reachable))})


def saved_config(directory: RunDirectory) -> Config:
    """Return the configuration of a run on disk.

    Raises
    ------
    ConfigError
        When something that it names is not on this machine.
    """
    return load_run_config(directory.config_file)


@usual_torch_state()
def resume(path: Path | str, watch: Watch = no_progress, overrides: Overrides | None = None) -> Result:
    """Continue a run that was killed, interrupted or failed to the bits it would have had; or read a finished one.

    With ``overrides`` as ``{"rounds": 8}`` a finished run goes on for longer.

    Raises
    ------
    FedlabError
        When it cannot go on; what was done is kept.
    """
    directory = RunDirectory.open(path)
    config = continuation(directory, overrides or {})
    if config is None:
        result = Result.read(directory.path)
        wanted = bool(read_preset(str(directory.config_file))[1].get("report", True))  # its plug-ins may be gone
        return write_page(result) if wanted and not directory.page.is_file() else result
    check(config, overrides or {})
    record_continuation(directory, config)
    return run_engine(directory, watch)


@usual_torch_state()
def run_engine(directory: RunDirectory, watch: Watch = no_progress) -> Result:
    """Hand a run directory to its engine; ``watch`` opens what shows the run while it runs.

    Raises
    ------
    FedlabError
        When the run did not finish; what was done is kept.
    """
    config = saved_config(directory)
    engine = config.plugins["engine"].spec
    if engine.simulates_clients:
        directory.write_split(partition_statistics(config.workload, len(config.clients)), class_names(config.workload))
    sources = data_sources(config)
    data = [asdict(source) for source in sources]
    directory.update_manifest(**declared_metrics(config).to_manifest(), data=data)
    with sigterm_as_interrupt(), watch(directory.path):
        if data:
            directory.emit("data", sources=data)
        if config.data.expect_full and (advice := full_sets_advice(sources)):
            directory.emit("note", round=0, note=advice)
        try:
            engine.start(APPS, config, directory.path)
        except BaseException as error:
            if directory.manifest().get("status") in ("created", "running"):  # killed before it could say so itself
                directory.note_end(error)
            if isinstance(error, OSError):
                raise directory.stopped_by(error) from error
            raise
    if directory.manifest().get("status") != "finished":
        raise RunError(
            f"the run did not finish; {directory.path}/events.jsonl says how far it came, and "
            f"`fedlab resume {directory.path}` continues it"
        )
    result = Result.read(directory.path)
    if config.run.report:
        return write_page(result)
    directory.page.unlink(missing_ok=True)  # that of an earlier end would be wrong
    return result


def write_page(result: Result, with_predictions: bool = False) -> Result:
    """Write a run's report.html from its directory, and return the result.

    Parameters
    ----------
    with_predictions
        Also show confusion matrices and example images of the clients, for which their test data is read and
        predicted.

    Raises
    ------
    RunError
        When it cannot be written; the run itself is not touched.
    """
    from fedlab.report.client_predictions import predictions_of  # late: both bring matplotlib
    from fedlab.report.run_page import write_report

    try:
        write_report(result, predictions_of(result) if with_predictions else None)
    except OSError as error:
        raise RunError(
            f"the run is kept in {result.directory}; its page could not be written ({os_error_sentence(error)}). After "
            f"that, `fedlab report {result.directory}` writes it"
        ) from None
    return result


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C: the run stops cleanly and can be resumed."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread, for instance in a notebook's worker
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
