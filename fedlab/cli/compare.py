"""``fedlab compare``: strategies side by side, with their statistics."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from fedlab.cli.consoles import show_error, stderr, stdout, write_line
from fedlab.cli.errors import InterruptedWithAdvice

HELP = """Run strategies on the same seeds and say which differences are real.

Example: `fedlab compare dualadapt-digits-heads --strategies source_only,dualadapt,oracle:client.steps=40 --seeds 5`

**Strategies** are NAME, NAME:option=value:option=value or LABEL=NAME:..., see `fedlab list strategies`; ablations have
names there, for instance dualadapt_no_mixup.

**Options**: key=value holds for every cell, key=v1,v2 makes a grid: `server.steps=24,48 dualadapt.mixup=average,off`.
An option of free text is taken whole, since its value may hold commas (`digits.targets=usps,mnist_m` is one value);
there, and wherever you like, write `|` between values: `'digits.targets=usps|usps,mnist_m'`. An option that a strategy
does not have is left out of its cells. Clients of strategies that train on labels get them; DualAdapt goes without its
twin.

**The same command again** goes on where it was killed, tries failed cells again, and runs nothing that is there: a
cell is known by its resolved options. More strategies, seeds or values add cells. The tables of the comparison before
are kept in `earlier/` of the folder.

**Threads** are part of what fixes the bits: threads=1 a cell unless you set it, whatever --jobs is.

**A Flower app** in place of a preset: `fedlab compare quickstart-pytorch learning-rate=0.05,0.1` compares values of its
run config. The strategy is the app's own.

**On a cluster**: `--on ray` or `--on slurm:partition=gpu,time=2:00:00` gives each cell to a machine that is free. All
of them must see the same folders. See the page "Use a cluster" of the docs.

**Budgets** end a run with the round that reaches them; rounds=N stays the most. A budget in seconds depends on the
machine and on what else it does, so the bits do, too.
"""


def compare(
    preset: Annotated[str, typer.Argument(help="Preset (see `fedlab list`), TOML file, or folder of a Flower app.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=V1,V2]...", help="Options, with one value or several.")
    ] = None,
    strategies: Annotated[str, typer.Option(help="What to compare, separated by commas.")] = "",
    seeds: Annotated[str, typer.Option(help="How many seeds from 0, or each of them: 0,3,7.")] = "5",
    baseline: Annotated[
        str | None,
        typer.Option(help="Label that others are compared with; default: the lower bound if there, else the first."),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="What is compared: a metric of the clients, or of the server's score; default: the workload's."
        ),
    ] = None,
    target: Annotated[float | None, typer.Option(help="Also what it costs to reach this score, e.g. 0.7.")] = None,
    budget: Annotated[
        list[str] | None, typer.Option(help="rounds=3, bytes=5MB or seconds=60; may be given several times.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", help="Cells at a time; default: one for each core or GPU.")
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(
            help="Cluster that runs the cells: ray, ray:ADDRESS or slurm:partition=...,time=...; default: here."
        ),
    ] = None,
    out_dir: Annotated[
        Path | None, typer.Option("--out", help="The comparison's folder; default: comparisons/PRESET.")
    ] = None,
    as_latex: Annotated[
        bool, typer.Option("--latex", help="The tables in LaTeX, at the end, as in table.tex of the folder.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the folder, at the end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Events as JSON lines, the result as the last one.")] = False,
) -> None:
    """Run strategies on the same seeds and say which differences are real."""
    from fedlab.comparison import plan, planner, progress, runner, spec
    from fedlab.comparison.latex import latex
    from fedlab.config.presets import parse_overrides

    written = parse_overrides(overrides or [])
    limits = spec.parse_budget(budget or [])
    planned = planner.plan(
        plan.ComparisonRequest(preset, strategies, seeds, written, baseline, target, limits, jobs, out_dir, metric, on)
    )
    console = stderr if as_latex else stdout  # tables in LaTeX may go on into a file
    live = progress.RichProgress(console) if console.is_terminal and not (quiet or as_json) else None
    lines: plan.NullListener | progress.JsonProgress | progress.PlainProgress = plan.NullListener()
    if not (quiet or as_latex) or as_json:
        lines = progress.JsonProgress(write_line) if as_json else progress.PlainProgress(write_line)
    try:
        with live or nullcontext():
            comparison = runner.execute(planned, live or lines)
    except KeyboardInterrupt:
        raise InterruptedWithAdvice(
            f"interrupted; nothing finished is lost. The same command goes on:\n{planned.comparison.command}"
            f"{' --latex' if as_latex else ''}"
        ) from None
    if isinstance(lines, progress.JsonProgress):
        lines.result(comparison)
    elif as_latex:
        write_line(latex(comparison).rstrip())
    elif quiet:
        write_line(str(comparison.directory))
    else:
        progress.print_summary(comparison, stdout)
    if comparison.failed:
        show_error(runner.failures(comparison))
        raise typer.Exit(1)
