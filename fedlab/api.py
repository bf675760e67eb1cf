"""Functions for notebooks and scripts: run, resume, serve, compare and predict."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from fedlab import launch
from fedlab.comparison.result import Comparison
from fedlab.comparison.runner import compare
from fedlab.config.presets import read_preset
from fedlab.config.schema import Config
from fedlab.config.sections import Overrides, Value
from fedlab.files import ensure_home
from fedlab.inference.predict import Prediction, load_predictor
from fedlab.plugins import give_object, reference_to
from fedlab.run_result import RunResult as Result
from fedlab.runs.directory import RunDirectory
from fedlab.runs.progress import Event, follow, watch_live
from fedlab.torch_state import usual_torch_state

__all__ = ["Comparison", "Config", "Prediction", "Result", "compare", "predict", "resume", "run", "serve"]

Preset = str | Path | Mapping[str, Any]
OnRound = Callable[[int, Mapping[str, float]], object]


def run(
    preset: Preset = "",
    *,
    workload: object = None,
    strategy: object = None,
    runs: Path | str = "runs",
    progress: bool = False,
    on_round: OnRound | None = None,
    overrides: Overrides | None = None,
    **options: Value,
) -> Result:
    """Run a federation to its end and return what it found.

    Two runs in two threads of a process are done one after the other: generators and settings of torch belong to all.

    Parameters
    ----------
    preset
        Name of a preset (``fedlab list``), path of a TOML file, or a mapping of options; empty: the defaults.
    workload, strategy
        Names, import paths, or objects: a workload of your own, or one that :func:`fedlab.classification` makes of a
        model and data; a StrategySpec or an AggregationSpec.
    runs
        Folder in which the run directory is made.
    progress
        Show rounds, phases and clients' metrics as they come, in a terminal or a notebook.
    on_round
        Called after each round with its number and the means of its metrics: those over clients, and those of the
        global model. It is called in another thread, after the round was written; it cannot change the run.
    overrides, options
        Options by name; ``overrides`` takes those with a dot: ``run("dualadapt-digits", rounds=3,
        overrides={"dualadapt.mixup": "off"})``.

    Raises
    ------
    FedlabError
        When the run could not be done as asked; what was done is on disk and can be resumed.
    """
    ensure_home()
    chosen: dict[str, Value] = {}
    for kind, found in (("workload", workload), ("strategy", strategy)):
        if found is not None:
            reference, values = (found, {}) if isinstance(found, str) else reference_to(kind, found)
            chosen |= {kind: reference, **values}
    table = str(preset) if isinstance(preset, Path) else preset
    config = launch.prepare(table, {**chosen, **(overrides or {}), **options})
    directory = RunDirectory.create(Path(runs), config)
    launch.run_engine(directory, _watch(progress, on_round))
    return Result.read(directory.path)


def serve(preset: Preset = "", *, runs: Path | str = "runs", progress: bool = False, **options: Any) -> Result:
    """Run a federation of real clients over gRPC, as `fedlab serve` does; options as of :func:`run`.

    Raises
    ------
    FedlabError
        When the run could not be done as asked; what was done is on disk and can be resumed.
    """
    return run(preset, runs=runs, progress=progress, engine="grpc", **options)


def resume(
    path: Path | str,
    *,
    workload: object = None,
    strategy: object = None,
    progress: bool = False,
    on_round: OnRound | None = None,
    overrides: Overrides | None = None,
    **options: Value,
) -> Result:
    """Continue a run that was killed, interrupted or failed, to the same bits; or read a finished one.

    With ``rounds=8`` a finished run goes on for longer; options that change results stay as they were. ``on_round`` is
    called after each new round, as by :func:`run`. Where another process began the run with an object of its own as
    ``workload`` or ``strategy``, give the same object again.

    Raises
    ------
    FedlabError
        When it cannot go on; what was done is kept.
    """
    ensure_home()
    for kind, found in (("workload", workload), ("strategy", strategy)):
        if found is not None:
            give_object(str(read_preset(str(RunDirectory.open(path).config_file))[1][kind]), found)
    return Result.read(launch.resume(path, _watch(progress, on_round), {**(overrides or {}), **options}).directory)


@usual_torch_state()
def predict(
    directory: Path | str, images: Sequence[str], client: str | None = None, server_round: int | None = None
) -> list[Prediction]:
    """Classify image files with the model that a client keeps, or with a checkpoint of a run.

    Parameters
    ----------
    directory
        What a client keeps (``clients/NAME``), or a run directory.
    images
        Files, folders and patterns.
    client
        Of a run: the client in whose place to predict.
    server_round
        Of a run: the round of the checkpoint; None: the newest.

    Raises
    ------
    FedlabError
        When there is no such model, or an image cannot be read.
    """
    return load_predictor(Path(directory), client, server_round).predict(list(images))


class _RoundListener:
    """Calls a function after each round, until it raises."""

    def __init__(self, on_round: OnRound) -> None:
        self.on_round = on_round
        self.error: Exception | None = None

    def on_event(self, event: Event) -> None:
        if event["event"] == "round" and self.error is None:
            try:
                self.on_round(event["round"], {**event["mean"], **event["score"]})
            except Exception as error:
                self.error = error


def _watch(progress: bool, on_round: OnRound | None = None) -> launch.Watch:
    """Return what shows a run while it runs, and calls ``on_round``, whose exception ends the call, not the run."""

    @contextmanager
    def watch(path: Path) -> Iterator[None]:
        listener = _RoundListener(on_round) if on_round is not None else None
        with ExitStack() as stack:
            if progress:
                stack.enter_context(watch_live(path, Console()))
            if listener is not None:
                stack.enter_context(follow(path, listener))
            yield
        if listener is not None and listener.error is not None:
            raise listener.error

    return watch
