"""The command line: ``fedlab list | run | resume | compare | molecules | data | doctor``."""

from __future__ import annotations

import functools
import json
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fedlab.cli import compare, deploy, molecules, predict
from fedlab.errors import FedlabError

if TYPE_CHECKING:
    from fedlab.config.schema import Flat
    from fedlab.runs.metrics import MetricTable
    from fedlab.runs.result import Result

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help="Federations whose server owns labelled source data and whose clients own unlabelled targets."
    "\n\nStart with `fedlab run dualadapt-digits`.",
)
data_app = typer.Typer(no_args_is_help=True, help="The digit domains: which are here, and fetching the full ones.")
app.add_typer(data_app, name="data")

out, err = Console(), Console(stderr=True)
Command = TypeVar("Command", bound=Callable[..., Any])

INTERRUPTED = 130


class What(StrEnum):
    """What `fedlab list` can list."""

    presets = "presets"
    workloads = "workloads"
    strategies = "strategies"
    engines = "engines"
    datasets = "datasets"
    knobs = "knobs"
    everything = "all"


def speaks(command: Command) -> Command:
    """Show an error of ours as its sentence and exit with 1; anything else is a bug and keeps its traceback.

    Warnings are sentences, too. Where a script asked for JSON lines, the error is the last of them.
    """

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        warnings.showwarning = _show_warning
        try:
            return command(*args, **kwargs)
        except FedlabError as error:
            if kwargs.get("as_json"):
                sys.stdout.write(
                    json.dumps({"event": "error", "error": type(error).__name__, "message": str(error)}) + "\n"
                )
            err.print("[bold red]error:[/] ", end="")
            err.print(str(error), markup=False, highlight=False, soft_wrap=True)  # paths stay whole, to be copied
            raise typer.Exit(1) from None

    return wrapped  # type: ignore[return-value]


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning of ours as a sentence; others as Python has them."""
    if category.__module__.startswith("fedlab"):
        err.print("[bold yellow]warning:[/] ", end="")
        err.print(str(message), markup=False, highlight=False, soft_wrap=True)
    else:
        _python_shows(message, category, filename, lineno, file, line)


_python_shows = warnings.showwarning


def show_rows(title: str, rows: list[tuple[str, ...]], *heads: str) -> None:
    """Print a plain table."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=None,
        padding=(0, 2, 0, 0),
        header_style="dim",
        show_header=bool(heads),
    )
    for index in range(len(rows[0]) if rows else len(heads)):
        table.add_column(heads[index] if heads else "", style="cyan" if index == 0 else "", no_wrap=index == 0)
    for row in rows:
        table.add_row(*map(escape, row))
    if out.is_terminal:
        out.print(table)
    else:  # a line a row, of which `| grep` finds the whole
        widths = [max(map(len, column)) for column in zip(*([heads] if heads else []), *rows, strict=True)]
        for line in (title, *([heads] if heads else []), *rows):
            cells = [line] if isinstance(line, str) else map(str.ljust, line, widths)
            out.print("  ".join(cells).rstrip(), markup=False, highlight=False, soft_wrap=True)
    out.print()


def _version(asked: bool) -> None:
    if asked:
        from fedlab.runs.directory import versions

        out.print("\n".join(f"{name} {version}" for name, version in versions().items()), highlight=False)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Versions of fedlab and what it uses.")
    ] = False,
) -> None:
    """Options that stand before a command; the app's own help says what it is."""


@app.command("list")
@speaks
def list_(
    what: Annotated[What, typer.Argument(help="What to list.")] = What.everything,
    preset: Annotated[str, typer.Argument(help="With knobs: a preset, whose values are shown.")] = "",
) -> None:
    """What there is: presets, workloads, strategies, engines, data sets, and with `knobs` every knob.

    Example: `fedlab list knobs dualadapt-digits`, the knobs that this preset has an effect with, and its values
    """
    from fedlab import engines, strategies, workloads
    from fedlab.config.schema import knobs, preset_names, read_preset
    from fedlab.data.images.image_sets import IMAGE_SETS
    from fedlab.data.segmentation.camvid import DRIVES
    from fedlab.errors import ConfigError
    from fedlab.launch import sections, settle

    if preset and what is not What.knobs:
        raise ConfigError(f"only knobs are of a preset; write fedlab list knobs {preset}")
    values = settle(preset, {}) if preset else {name: knob.default for name, knob in knobs(sections()).items()}
    tables: dict[What, Callable[[], list[tuple[str, ...]]]] = {
        What.presets: lambda: [(name, read_preset(name)[0]) for name in preset_names()],
        What.workloads: lambda: [(name, line.summary) for name, line in workloads.WORKLOADS.items()],
        What.strategies: lambda: [
            *((name, entry.summary) for name, entry in strategies.STRATEGIES.items()),
            *((name, f"{variant.strategy}, {variant.summary}") for name, variant in strategies.VARIANTS.items()),
        ],
        What.engines: lambda: [(name, engine.summary) for name, engine in engines.ENGINES.items()],
        What.datasets: lambda: [
            *((name, entry.description) for name, entry in IMAGE_SETS.items()),
            *((name, f"CamVid, {drive.description}") for name, drive in DRIVES.items()),
        ],
        What.knobs: lambda: [
            (name, json.dumps(values[name]), knob.description)
            for name, knob in knobs(sections()).items()
            if name in values
        ],
    }
    chosen = [name for name in tables if name is not What.knobs] if what is What.everything else [what]
    for name in chosen:
        show_rows(name.value, tables[name](), *(("knob", preset or "default", "") if name is What.knobs else ()))
    if what is What.everything:
        out.print("[dim]fedlab list knobs[/] shows every knob; [dim]fedlab run PRESET key=value[/] sets one.")


@app.command()
@speaks
def run(
    preset: Annotated[str, typer.Argument(help="Name of a preset (see `fedlab list`), or a TOML file.")],
    knobs: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Knobs, e.g. rounds=3.")] = None,
    engine: Annotated[str | None, typer.Option(help="What carries the messages: inprocess or ray.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    seed: Annotated[int | None, typer.Option(help="Run seed.")] = None,
    runs: Annotated[Path, typer.Option(help="Folder for the run directory.")] = Path("runs"),
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the run directory, at the end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Events as JSON lines, the result as the last one.")] = False,
) -> None:
    """Run a federation and show what it found.

    Example: `fedlab run dualadapt-digits rounds=3 dualadapt.mixup=off --seed 1`
    """
    from fedlab import launch
    from fedlab.config.schema import parse_overrides

    options = {"engine": engine, "device": device, "seed": seed}
    flat = launch.prepare(
        preset, {**parse_overrides(knobs or []), **{k: v for k, v in options.items() if v is not None}}
    )
    begin(flat, runs, f"{flat['engine']} engine", quiet, as_json)


def begin(flat: Flat, runs: Path, how: str, quiet: bool, as_json: bool) -> None:
    """Make the run directory of resolved knobs, say what begins and how it is carried, and run it to its result."""
    from fedlab import launch
    from fedlab.runs.directory import RunDirectory

    directory = RunDirectory.create(runs, flat)
    if not quiet and not as_json:
        out.print(
            f"[bold]{flat['name']}[/]: {flat['strategy']} on {flat['workload']}, seed {flat['seed']}, "
            f"{how}, into {directory.path}",
            highlight=False,
            soft_wrap=True,
        )
    finish(directory.path, lambda watch: launch.execute(directory, watch), quiet, as_json)


@app.command()
@speaks
def resume(
    run_dir: Annotated[Path, typer.Argument(help="A run directory.")],
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the run directory, at the end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Events as JSON lines, the result as the last one.")] = False,
) -> None:
    """Continue a run that was killed or interrupted; it ends at the same bits as one that was not."""
    from fedlab import launch
    from fedlab.runs.directory import RunDirectory

    if RunDirectory.open(run_dir).manifest().get("status") == "finished" and not quiet and not as_json:
        out.print("this run is finished, and there is nothing to do; what it found:")
    finish(run_dir.resolve(), lambda watch: launch.resume(run_dir, watch), quiet, as_json)


def finish(
    path: Path, work: Callable[[Callable[[Path], AbstractContextManager[None]]], Result], quiet: bool, as_json: bool
) -> None:
    """Do the work under the right voice, then show the result; Ctrl-C says how to go on."""
    from fedlab import launch
    from fedlab.runs import progress

    def say(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    def voice(directory: Path) -> AbstractContextManager[None]:
        if quiet:
            return launch.unwatched(directory)
        if as_json:
            return progress.follow(directory, progress.JsonProgress(say))
        if out.is_terminal:
            return progress.watch_live(directory, out)
        return progress.follow(directory, progress.PlainProgress(say, progress.declared(directory)))

    try:
        result = work(voice)
    except KeyboardInterrupt:
        err.print(
            f"\ninterrupted; nothing finished is lost. Continue with: [bold]fedlab resume {path}[/]",
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        say(
            json.dumps(
                {
                    "event": "result",
                    "run_dir": str(result.directory),
                    "weights_sha256": result.weights_sha256,
                    "clients": result.final(),
                    "mean": result.rounds[-1]["mean"],
                }
            )
        )
    elif quiet:
        say(str(result.directory))
    else:
        show_result(result, out)


def show_result(result: Result, console: Console) -> None:
    """Print the closing table (client by metric), then score, seconds, bytes and the run directory."""
    from fedlab.runs.formatting import elapsed, human_bytes

    last, metrics = result.rounds[-1], result.metric_table
    names = metrics.shown(result.metric_names)
    table = Table(
        title=f"After round {last['round']}, on each client's test data", title_justify="left", title_style="bold"
    )
    table.add_column("client")
    for name in names:
        table.add_column(Text(metrics.heading(name)), justify="right")
    for client in last["bytes"]:
        table.add_row(Text(client), *_metric_cells(metrics, names, last["clients"].get(client, {})))
    table.add_section()
    table.add_row("mean", *_metric_cells(metrics, names, last["mean"]), style="bold")
    console.print(table)
    score = result.score()
    if score:
        primary = (
            f"{metrics.heading(name)} {metrics.format(name, score[name])}" for name in metrics.primary_scores(score)
        )
        console.print(Text(f"score     {'  '.join(primary)}"))
    seconds = result.seconds()
    phases = ", ".join(f"{phase} {elapsed(value)}" for phase, value in seconds.items() if value >= 0.05)
    console.print(f"time      {elapsed(sum(seconds.values()))} ({phases})", highlight=False)
    console.print(
        f"bytes     {human_bytes(result.bytes('train_down'))} down and {human_bytes(result.bytes('train_up'))} "
        f"up for training; {human_bytes(result.bytes('evaluate_down'))} down for testing",
        highlight=False,
    )
    console.print(
        f"run       {result.directory}  (report.html, metrics.jsonl, checkpoints)", highlight=False, soft_wrap=True
    )


def _metric_cells(metrics: MetricTable, names: Sequence[str], values: Mapping[str, float]) -> list[Text]:
    """Return the cells of a row: text that is never read as markup, "-" for what was not measured."""
    return [Text(metrics.format(name, values[name]) if name in values else "-") for name in names]


@data_app.command("list")
@speaks
def data_list(data_root: Annotated[str, typer.Option(help="Folder of full sets; default: $FEDLAB_DATA.")] = "") -> None:
    """The digit domains, where each is read from and how many images it has."""
    from fedlab.data import download
    from fedlab.data.digits import datasets

    root = datasets.data_root(data_root)
    rows: list[tuple[str, ...]] = [
        (row.domain, row.where, *("-" if n is None else str(n) for n in (row.train, row.test)), row.status)
        for row in download.available(root)
    ]
    show_rows(
        f"data root: {root or 'none, the sets inside the package'}", rows, "domain", "where", "train", "test", "status"
    )


@data_app.command("download")
@speaks
def data_download(
    root: Annotated[Path, typer.Argument(help="Folder to fill; set data_root or $FEDLAB_DATA to it afterwards.")],
    domains: Annotated[str, typer.Option(help="Comma-separated: mnist, usps, svhn.")] = "mnist,usps,svhn",
) -> None:
    """Fetch the full MNIST, USPS and SVHN with torchvision's downloaders."""
    from fedlab.data import download

    download.download(root, [name.strip() for name in domains.split(",") if name.strip()], out.print)


@app.command()
@speaks
def doctor() -> None:
    """Look at versions, data, ports and GPU; say what is wrong and how to mend it. Exits with 1 if anything is."""
    from fedlab.doctor import examine

    findings = examine()
    for finding in findings:
        mark = {"ok": "[green]ok  [/]", "note": "[yellow]note[/]", "bad": "[red]bad [/]"}[finding.status]
        out.print(f"{mark} {escape(finding.what)}", highlight=False, soft_wrap=True)
        if finding.remedy:
            out.print(f"     -> {escape(finding.remedy)}", highlight=False, soft_wrap=True)
    if any(finding.status == "bad" for finding in findings):
        raise typer.Exit(1)


deploy.register(app)
predict.register(app)
compare.register(app)
molecules.register(app)


def main() -> None:
    """Entry point of the ``fedlab`` command."""
    app()


if __name__ == "__main__":
    main()
