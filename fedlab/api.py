"""Functions for notebooks and scripts: run, resume, serve, compare and predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fedlab import launch
from fedlab.comparison.result import Comparison
from fedlab.comparison.runner import compare
from fedlab.config.schema import Config
from fedlab.config.sections import Overrides, Value
from fedlab.files import ensure_home
from fedlab.inference.predict import Prediction, load_predictor
from fedlab.plugins import reference_to
from fedlab.runs.directory import RunDirectory
from fedlab.runs.progress import watch_live
from fedlab.runs.result import Result
from fedlab.torch_state import usual_torch_state

__all__ = ["Comparison", "Config", "Prediction", "Result", "compare", "predict", "resume", "run", "serve"]

Preset = str | Path | Mapping[str, Any]


def run(
    preset: Preset = "",
    *,
    workload: object = None,
    strategy: object = None,
    runs: Path | str = "runs",
    progress: bool = False,
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
        Names, import paths, or objects: a workload of your own, a StrategySpec or an AggregationSpec.
    runs
        Folder in which the run directory is made.
    progress
        Show rounds, phases and clients' metrics as they come, in a terminal or a notebook.
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
    return launch.run_engine(directory, _live if progress else launch.no_progress)


def serve(preset: Preset = "", *, runs: Path | str = "runs", progress: bool = False, **options: Any) -> Result:
    """Run a federation of real clients over gRPC, as `fedlab serve` does; options as of :func:`run`.

    Raises
    ------
    FedlabError
        When the run could not be done as asked; what was done is on disk and can be resumed.
    """
    return run(preset, runs=runs, progress=progress, engine="grpc", **options)


def resume(path: Path | str, *, progress: bool = False, overrides: Overrides | None = None, **options: Value) -> Result:
    """Continue a run that was killed, interrupted or failed, to the same bits; or read a finished one.

    With ``rounds=8`` a finished run goes on for longer; options that change results stay as they were.

    Raises
    ------
    FedlabError
        When it cannot go on; what was done is kept.
    """
    ensure_home()
    watch = _live if progress else launch.no_progress
    return launch.resume(path, watch, {**(overrides or {}), **options})


@usual_torch_state()
def predict(directory: Path | str, images: Sequence[str], client: str | None = None) -> list[Prediction]:
    """Classify image files with the model that a client keeps, or with a run's newest checkpoint.

    Parameters
    ----------
    directory
        What a client keeps (``clients/NAME``), or a run directory.
    images
        Files, folders and patterns.
    client
        Of a run: the client in whose place to predict.

    Raises
    ------
    FedlabError
        When there is no such model, or an image cannot be read.
    """
    return load_predictor(Path(directory), client).predict(list(images))


def _live(path: Path) -> Any:
    return watch_live(path, Console())
