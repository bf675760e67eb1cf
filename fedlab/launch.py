"""The composition root: from a preset's name to a finished run. It names the two apps, and imports neither.

Everything that can be refused is refused here, before a directory is made or a process is started.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import FrameType

from fedlab import engines, workloads
from fedlab.config import CORE_SECTIONS, Core, Flat, Value, build, parse_arrivals, read_preset, resolve
from fedlab.data.digits import data_root
from fedlab.errors import ConfigError, RunError
from fedlab.results import Result
from fedlab.runs import RunDirectory
from fedlab.training import pick_device, resolve_device
from fedlab.workload import lacking

APPS = engines.Apps(server="server.app:app", client="client.app:app")

Watch = Callable[[Path], AbstractContextManager[None]]


def unwatched(path: Path) -> AbstractContextManager[None]:
    """Show nothing."""
    return nullcontext()


def _live(path: Path) -> AbstractContextManager[None]:
    from rich.console import Console

    from fedlab.watch import watch_live

    return watch_live(path, Console())


def sections() -> dict[str, type]:
    """Every section of knobs by its prefix."""
    import strategies

    return {
        **CORE_SECTIONS,
        **{name: line.knobs for name, line in workloads.WORKLOADS.items()},
        **{name: entry.knobs for name, entry in strategies.STRATEGIES.items()},
    }


def prepare(preset: str, overrides: Flat) -> dict[str, Value]:
    """All knobs of a run, checked: names, types, ranges, data, device, and that strategy and workload fit together.

    Raises
    ------
    ConfigError, DataError
        With a sentence that says what came, what was expected and what to do.
    """
    import strategies

    _, table = read_preset(preset)
    merged = {**table, **overrides}
    workload, strategy = (
        str(merged.get(kind, default)) for kind, default in (("workload", Core.workload), ("strategy", Core.strategy))
    )
    workloads.find(workload)
    chosen = {"workload": workload, "strategy": strategy, **strategies.chosen_by(strategy, merged)}
    flat = resolve(table, overrides, sections(), chosen)
    root = data_root(str(flat["data_root"]))
    flat["data_root"] = str(root.resolve()) if root else ""
    reachable = engines.find(str(flat["engine"])).gpu_reachable(flat)
    flat["device"] = resolve_device(str(flat["device"]), reachable)  # so that a resumed run keeps to it
    _check(flat)
    return flat


def _check(flat: Flat) -> None:
    """Refuse what could not run."""
    import strategies

    core = build(Core, "", flat)
    pick_device(core.device)
    workload = workloads.make(flat)
    partitions, engine = len(workload.clients), engines.find(core.engine)
    if core.clients > partitions:
        raise ConfigError(
            f"clients={core.clients}, but workload {core.workload!r} has {partitions} partitions "
            f"({', '.join(workload.clients)}); ask for at most {partitions}"
        )
    clients = core.clients or partitions
    if core.min_clients > clients:
        raise ConfigError(f"min_clients={core.min_clients} is more than the {clients} clients of the run")
    if core.folder:
        raise ConfigError("knob 'folder' is set on a client by `fedlab join --data`; a run has none")
    parse_arrivals(core.arrivals, dict(enumerate(workload.clients[:clients])))
    engine.check(flat)
    for partition in range(clients) if engine.clients_here else ():
        for split in ("train", "test"):
            workload.data(partition, split)
    if strategies.find(core.strategy).labelled and engine.clients_here and lacking(workload, workload.data(0, "train")):
        raise ConfigError(
            f"strategy {core.strategy!r} trains on the clients' own labels, and the clients of this workload "
            f"({', '.join(workload.clients)}) have none; use dualadapt or source_only, or a setting in which clients "
            "hold labels (digits.setting=shards, or oracle for an upper bound)"
        )
    strategies.make(flat, workload)


def run(
    preset: str,
    *,
    runs: Path | str = "runs",
    progress: bool = False,
    knobs: Mapping[str, Value] | None = None,
    **overrides: Value,
) -> Result:
    """Run a preset to its end and return what it found.

    Parameters
    ----------
    preset
        Name of a preset (``fedlab list``) or path of a TOML file.
    runs
        Folder in which the run directory is made.
    progress
        Show rounds, phases and clients' metrics as they come, in a terminal or a notebook.
    knobs, overrides
        Knobs by name; ``knobs`` takes those with a dot: ``run("dualadapt-digits", rounds=3,
        knobs={"dualadapt.mixup": "off"})``.

    Raises
    ------
    FedlabError
        When the run could not be done as asked; what was done is on disk and can be resumed.
    """
    flat = prepare(preset, {**overrides, **(knobs or {})})
    return execute(RunDirectory.create(Path(runs), flat), _live if progress else unwatched)


def resume(path: Path | str, watch: Watch = unwatched) -> Result:
    """Continue a run that was killed, interrupted or failed to the bits it would have had; or read a finished one."""
    directory = RunDirectory.open(path)
    if directory.manifest().get("status") == "finished":
        return Result.read(directory.path)
    _check(directory.config())
    return execute(directory, watch)


def execute(directory: RunDirectory, watch: Watch = unwatched) -> Result:
    """Hand a run directory to its engine; ``watch`` opens what shows the run while it runs."""
    from fedlab.report import write_report

    flat = directory.config()
    core = build(Core, "", flat)
    clients = core.clients or len(workloads.make(flat).clients)
    with _sigterm_as_interrupt(), watch(directory.path):
        try:
            engines.find(core.engine).run(APPS, flat, clients, directory.path)
        except BaseException as error:
            if directory.manifest().get("status") in ("created", "running"):  # killed before it could say so itself
                interrupted = isinstance(error, KeyboardInterrupt)
                directory.note(status="interrupted" if interrupted else "failed", error=str(error) or None)
            if isinstance(error, OSError):
                raise RunError(
                    f"the run stopped: {error}; once that is mended, `fedlab resume {directory.path}` goes on"
                ) from error
            raise
    if directory.manifest().get("status") != "finished":
        raise RunError(
            f"the run did not finish; {directory.path}/events.jsonl says how far it came, and "
            f"`fedlab resume {directory.path}` continues it"
        )
    result = Result.read(directory.path)
    write_report(result)
    return result


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """A polite kill ends like Ctrl-C: cleanly, and resumable."""

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
