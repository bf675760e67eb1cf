"""``fedlab list``, ``data`` and ``doctor``: what there is, and what is wrong with this machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from fedlab.cli.common import show_rows
from fedlab.cli.consoles import stdout
from fedlab.cli.errors import handle_errors
from fedlab.config.presets import preset_names
from fedlab.config.sections import Option, options
from fedlab.errors import HELP_PAGE, ConfigError
from fedlab.registry import all_sections, load_config, names, preset_plugins, read_any_preset, summary
from fedlab.strategies.ablations import ABLATIONS

data_app = typer.Typer(no_args_is_help=True, help="The digit domains: which are here, and fetching the full ones.")


class ListTarget(StrEnum):
    """Targets of `fedlab list`."""

    presets = "presets"
    workloads = "workloads"
    strategies = "strategies"
    aggregations = "aggregations"
    engines = "engines"
    datasets = "datasets"
    options = "options"
    everything = "all"


def list_(
    target: Annotated[ListTarget, typer.Argument(help="What to list.")] = ListTarget.everything,
    preset: Annotated[
        str,
        typer.Argument(help="With options: a preset, whose values are shown, or a section such as scaffold or client."),
    ] = "",
) -> None:
    """List presets, workloads, strategies, engines, data sets, or with `options` every option.

    Example: `fedlab list options dualadapt-digits`, the options that have an effect with this preset, and their values;
    `fedlab list options scaffold`, those whose names begin with `scaffold.`
    """
    if preset and target is not ListTarget.options:
        raise ConfigError(f"only options are of a preset; write fedlab list options {preset}")
    tables: dict[ListTarget, Callable[[], list[tuple[str, ...]]]] = {
        ListTarget.presets: _presets,
        ListTarget.workloads: lambda: [(name, summary("workload", name)) for name in names("workload")],
        ListTarget.strategies: lambda: [
            *((name, summary("strategy", name)) for name in names("strategy")),
            *((name, f"{ablation.strategy}, {ablation.summary}") for name, ablation in ABLATIONS.items()),
        ],
        ListTarget.aggregations: lambda: [(name, summary("aggregation", name)) for name in names("aggregation")],
        ListTarget.engines: lambda: [(name, summary("engine", name)) for name in names("engine")],
        ListTarget.datasets: _datasets,
        ListTarget.options: lambda: _options(preset),
    }
    overview = (ListTarget.presets, ListTarget.workloads, ListTarget.strategies, ListTarget.engines)
    chosen = overview if target is ListTarget.everything else (target,)
    for name in chosen:
        value = preset if preset and preset not in _sections() else "default"
        heads = ("option", value, "") if name is ListTarget.options else ()
        show_rows(name.value, tables[name](), *heads)
    if target is ListTarget.everything:
        stdout.print(
            "[dim]fedlab list options[/] shows every option, [dim]fedlab list datasets[/] the data sets; "
            "[dim]fedlab run PRESET key=value[/] sets an option."
        )


def _presets() -> list[tuple[str, ...]]:
    return [(name, read_any_preset(name)[0]) for name in [*preset_names(), *sorted(preset_plugins())]]


def _datasets() -> list[tuple[str, ...]]:
    from fedlab.data.images.image_sets import IMAGE_SETS
    from fedlab.data.segmentation.camvid import DRIVES

    return [
        *((name, entry.description) for name, entry in IMAGE_SETS.items()),
        *((name, f"CamVid, {drive.description}") for name, drive in DRIVES.items()),
    ]


def _options(preset: str) -> list[tuple[str, ...]]:
    """Return the options of a preset with their values; or those of a section, or all, with their defaults."""
    if not preset or preset in _sections():
        known = {key: option for key, option in _known().items() if not preset or key.startswith(f"{preset}.")}
        return [(key, json.dumps(option.default), option.description) for key, option in known.items()]
    config = load_config(preset)
    known = options({prefix: type(section) for prefix, section in config.sections().items()})
    return [(key, json.dumps(value), known[key].description) for key, value in config.options().items()]


def _known() -> dict[str, Option]:
    return options(all_sections())


def _sections() -> set[str]:
    """Return what the names of options begin with, before a dot."""
    return {key.partition(".")[0] for key in _known() if "." in key}


@data_app.command("list")
@handle_errors
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
@handle_errors
def data_download(
    root: Annotated[Path, typer.Argument(help="Folder to fill; set data.root or $FEDLAB_DATA to it afterwards.")],
    domains: Annotated[str, typer.Option(help="Comma-separated: mnist, usps, svhn.")] = "mnist,usps,svhn",
) -> None:
    """Fetch the full MNIST, USPS and SVHN with torchvision's downloaders."""
    from fedlab.data import download

    download.download(root, [name.strip() for name in domains.split(",") if name.strip()], stdout.print)


def doctor() -> None:
    """Look at versions, data, ports and GPU; say what is wrong and how to mend it. Exits with 1 if anything is."""
    from fedlab.doctor import examine

    findings = examine()
    for finding in findings:
        mark = {"ok": "[green]ok  [/]", "note": "[yellow]note[/]", "bad": "[red]bad [/]"}[finding.status]
        stdout.print(f"{mark} {escape(finding.what)}", highlight=False, soft_wrap=True)
        if finding.remedy:
            stdout.print(f"     -> {escape(finding.remedy)}", highlight=False, soft_wrap=True)
    if any(finding.status == "bad" for finding in findings):
        stdout.print(f"more on causes: {HELP_PAGE}", highlight=False, soft_wrap=True, markup=False)
        raise typer.Exit(1)
