"""The run at a glance: ``report.html``, one page that needs no network, no script and no other file."""

from __future__ import annotations

from pathlib import Path

from fedlab.files import write_atomically
from fedlab.report import charts, commands, cost_charts, figures, partition_table, run_tables, samples, template
from fedlab.report.client_predictions import Predictions
from fedlab.runs.result import Result


def write_report(result: Result, predictions: Predictions | None = None) -> Path:
    """Write ``report.html`` into the run directory and return its path; an older one is replaced."""
    path = result.directory / "report.html"
    write_atomically(path, render(result, predictions).encode())
    return path


def render(result: Result, predictions: Predictions | None = None) -> str:
    """Return the page, which has no script and loads nothing.

    Parameters
    ----------
    predictions
        What the models predict for the clients; None: the page says how it is added.
    """
    results = run_tables.results_table(result)
    keys, curves = charts.primary_figures(result)
    others, once = charts.other_figures(result)
    phases, seconds = cost_charts.time_table(result)
    traffic, bytes_figures = cost_charts.traffic_table(result)
    clients = run_tables.client_names(result.rounds)
    failures = run_tables.failures(result)
    return template.render(
        "report.html",
        result=result,
        config=result.config,
        manifest=result.manifest,
        last=result.rounds[-1],
        title=run_tables.system(result),
        summary=run_tables.summary(result),
        measure=result.metric_table.title(run_tables.primary_group(result)),
        results=results,
        zeros=result.metric_table.zeros(result.rounds[-1]["clients"]),
        auxiliary=run_tables.auxiliary_table(result),
        scores=run_tables.score_table(result),
        clients=len(clients),
        absent=[] if results.worst else [name for name in clients if name not in result.rounds[-1]["clients"]],
        keys=keys,
        curves=curves,
        sometimes_missing=charts.sometimes_missing(result),
        others=others,
        once=once,
        phases=phases,
        seconds=seconds,
        kinds=list(cost_charts.KINDS.values()),
        traffic=traffic,
        bytes_figures=bytes_figures,
        bytes_by_client=1 < len(clients) <= figures.SLOTS,
        pictures=samples.of_run(result.directory),
        predictions=predictions,
        report=commands.report(result),
        failures=failures[: run_tables.LISTED],
        all_failures=len(failures),
        privacy=run_tables.privacy(result),
        split=partition_table.read(result.directory),
        facts=run_tables.facts(result),
        repeat=commands.repeat(result),
        from_preset="" if commands.repeat(result) else commands.repeat_from_preset(result),
        condition=commands.condition(result),
        from_config=commands.repeat_from_config(result),
        resume=commands.resume(result),
    )


def render_excerpt(result: Result) -> str:
    """Return a page of the summary, the clients' table and the curves of the primary metrics, for a notebook."""
    keys, curves = charts.primary_figures(result)
    return template.render(
        "notebook.html",
        result=result,
        last=result.rounds[-1],
        summary=run_tables.summary(result),
        results=run_tables.results_table(result),
        scores=run_tables.score_table(result),
        keys=keys,
        curves=curves,
        sometimes_missing=charts.sometimes_missing(result),
    )
