"""The composition root: from a preset's name to a finished run. It names the two apps, and imports neither.

Everything that can be refused is refused here, before a directory is made or a process is started.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType

import torch

from fedlab import engines, workloads
from fedlab.config.schema import CORE_SECTIONS, Core, Flat, Value, build, parse_arrivals, read_preset, resolve
from fedlab.data.digits.datasets import data_root
from fedlab.errors import ConfigError, DataError, RunError
from fedlab.runs.directory import RunDirectory
from fedlab.runs.metrics import MetricTable
from fedlab.runs.result import Result
from fedlab.training import pick_device, resolve_device
from fedlab.workload import KnowsLabels, Workload, lacking

APPS = engines.Apps(server="fedlab.server.app:app", client="fedlab.client.app:app")

Watch = Callable[[Path], AbstractContextManager[None]]


def unwatched(path: Path) -> AbstractContextManager[None]:
    """Show nothing."""
    return nullcontext()


def _live(path: Path) -> AbstractContextManager[None]:
    from rich.console import Console

    from fedlab.runs.progress import watch_live

    return watch_live(path, Console())


def sections() -> dict[str, type]:
    """Every section of knobs by its prefix."""
    from fedlab import strategies

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
    flat = settle(preset, overrides)
    _check(flat)
    return flat


def settle(preset: str, overrides: Flat) -> dict[str, Value]:
    """All knobs of a run by name, type and range, and places as they are on this machine; no data is read.

    Raises
    ------
    ConfigError, DataError
        With a sentence, as :func:`prepare`.
    """
    from fedlab import strategies

    table, overrides = strategies.spelled_out(read_preset(preset)[1], overrides)
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
    flat["pretrained"] = str(Path(str(flat["pretrained"])).resolve()) if flat["pretrained"] else ""
    return flat


def declared_metrics(flat: Flat) -> MetricTable:
    """Return the metrics and phases that a run's strategy and workload declare, with those of all runs."""
    from fedlab import strategies

    core = build(Core, "", flat)
    return MetricTable.declared(strategies.find(core.strategy), workloads.find(core.workload))


def clients_have_labels(workload: Workload) -> bool:
    """Whether clients hold all that the workload's loss reads, labels where it takes any."""
    return not lacking(workload, workload.data(0, "train"))


def _check(flat: Flat) -> None:
    """Refuse what could not run."""
    from fedlab import strategies

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
    for partition, number in parse_arrivals(core.arrivals, dict(enumerate(workload.clients[:clients]))).items():
        if number > core.rounds:
            raise ConfigError(
                f"knob 'arrivals': {workload.clients[partition]} would join in round {number}, and the run has "
                f"{core.rounds}; name an earlier round, or raise rounds"
            )
    engine.check(flat)
    for partition in range(clients) if engine.clients_here else ():
        for split in ("train", "test"):
            workload.data(partition, split)
    if strategies.find(core.strategy).labelled and engine.clients_here and not clients_have_labels(workload):
        table = workloads.find(core.workload).labelled
        bound = ", ".join(f"{key}={str(value).lower()}" for key, value in table.items())
        raise ConfigError(
            f"strategy {core.strategy!r} trains on the clients' own labels, and the clients of this workload "
            f"({', '.join(workload.clients)}) have none; use source_only, or a strategy that needs none (`fedlab list "
            f"strategies`){f', or for an upper bound {bound}' if bound else ''}"
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
    core, workload = build(Core, "", flat), workloads.make(flat)
    clients = core.clients or len(workload.clients)
    if engines.find(core.engine).clients_here:
        directory.write_split(split_of(workload, clients))
    directory.note(**declared_metrics(flat).to_manifest())
    with sigterm_as_interrupt(), watch(directory.path):
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
    write_report(result, sections())
    return result


def split_of(workload: Workload, clients: int) -> list[dict[str, object]]:
    """What the first ``clients`` clients train on, for ``split.json``.

    Returns
    -------
    list
        For each client its ``name``, the number of its ``examples``, and ``labels``: class to count, or None where
        the simulation does not know them or they are not one whole number for each example.
    """
    table: list[dict[str, object]] = []
    for partition, name in enumerate(workload.clients[:clients]):
        data = workload.data(partition, "train")
        labels = data.columns.get("y")
        if labels is None and isinstance(workload, KnowsLabels):
            with suppress(DataError):  # a set whose labels are nowhere
                labels = workload.labels(partition)
        counts = None
        if labels is not None and labels.dim() == 1 and not labels.is_floating_point():
            values, numbers = torch.unique(labels, return_counts=True)
            counts = dict(zip(map(str, values.tolist()), numbers.tolist(), strict=True))
        table.append({"name": name, "examples": len(data), "labels": counts})
    return table


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
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
