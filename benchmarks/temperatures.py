"""Validity, uniqueness and novelty of models by an option of how samples are drawn: the whole curve, over seeds.

    python -m benchmarks.temperatures comparisons/graphnvp-qm9 --figure docs/images/graphnvp-temperature.png
    python -m benchmarks.temperatures comparisons/mpgvae-qm9 --option molecules.decode_temperature --values 0,0.3,0.7,1
    python -m benchmarks.temperatures runs/graphnvp-qm9-0 --corrected

A folder of `fedlab compare`: a line for each variant and value, means over its finished seeds. Or one run. Models are
the runs' newest; what is drawn depends on the run's seed and on nothing else, so the same command prints the same
figures.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from fedlab.comparison.result import FACTS, Comparison
from fedlab.errors import ConfigError
from fedlab.evaluation import latent_plots
from fedlab.evaluation.distances import Floats
from fedlab.evaluation.molecules import validity_metrics
from fedlab.registry import load_config
from fedlab.runs.directory import RunDirectory
from fedlab.seeds import deterministic, seeded
from fedlab.workloads.molecules import Molecules

SCORES = ("validity", "uniqueness", "novelty", "valid_unique_novel")
PAPERS = {  # in percent, of QM9; see docs/explanation/graphnvp.md and docs/explanation/mpgvae.md
    "graphnvp": {"validity": 83.1, "uniqueness": 99.2, "novelty": 58.2},
    "mpgvae": {"validity": 91.0, "uniqueness": 68.0, "novelty": 54.0},
}
TEMPERATURES = "0.3,0.4,0.5,0.6,0.7,0.8,0.9,1"


def curve(path: Path, option: str, values: Sequence[float], samples: int, corrected: bool = False) -> Floats:
    """Scores (values, scores) of a run's newest model, corrected where asked; NaN where nothing valid was drawn."""
    run = RunDirectory.open(path)
    newest = run.checkpoints.latest()
    if newest is None:
        raise ConfigError(f"{path} has no checkpoint; `fedlab resume {path}` continues it")
    rows = []
    for value in values:
        config = load_config(str(run.config_file), {option: value})
        workload = config.workload
        if not isinstance(workload, Molecules):
            raise ConfigError(f"{path} learned {config.run.workload}, and only molecules are drawn here")
        model = workload.model()
        model.load_state_dict(newest[1]["arrays"])
        with seeded(config.run.seed, "temperatures"):
            found = validity_metrics(workload.draw(model, samples, corrected=corrected), workload.known())
        rows.append([found.get(score, np.nan) for score in SCORES])
    return np.array(rows)


def runs(folder: Path) -> dict[str, list[Path]]:
    """Variant to the run directories of its finished seeds; one run is a variant of its own."""
    if not (folder / FACTS).is_file():
        return {folder.name: [folder]}
    found: dict[str, list[Path]] = {}
    for cell, result in Comparison.read(folder).results:
        found.setdefault(cell.label, []).append(result.directory)
    return found


def table(found: Mapping[str, Floats], option: str, values: Sequence[float], title: str) -> Table:
    """Means over seeds and half their range, in percent."""
    shown = Table(title=title, title_justify="left")
    for head in ("variant", option.rpartition(".")[2], "seeds", "valid", "unique", "novel", "product"):
        shown.add_column(head, justify="left" if head == "variant" else "right")
    for label, scores in found.items():
        for column, value in enumerate(values):
            part = np.ma.masked_invalid(100 * scores[:, column])  # a seed without a valid sample is no part of a mean
            means, halves = part.mean(0).filled(np.nan), ((part.max(0) - part.min(0)) / 2).filled(np.nan)
            pairs = zip(means, halves, strict=True)
            figures = [f"{mean:.1f} ± {half:.1f}" if np.isfinite(mean) else "-" for mean, half in pairs]
            shown.add_row(label, f"{value:g}", str(len(scores)), *figures)
        shown.add_section()
    return shown


def main() -> None:
    """Print the table, and draw it where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of a comparison, or of a run")
    parser.add_argument("--option", default="molecules.latent_temperature")
    parser.add_argument("--values", default=TEMPERATURES)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--figure", type=Path, help="PNG file to write")
    parser.add_argument("--only", default="", help="variants, separated by commas; default: all")
    parser.add_argument("--corrected", action="store_true", help="with the correction step, after which all are valid")
    options = parser.parse_args()
    variants = runs(options.folder)
    variants = {label: variants[label] for label in options.only.split(",")} if options.only else variants
    values = [float(value) for value in options.values.split(",")]
    with deterministic(1):
        found = {
            label: np.stack([curve(path, options.option, values, options.samples, options.corrected) for path in paths])
            for label, paths in variants.items()
        }
    corrected = ", corrected" if options.corrected else ""
    title = f"{options.folder.name}, {options.samples:,} samples a seed{corrected}"
    Console().print(table(found, options.option, values, title))
    if options.figure:
        network = load_config(str(RunDirectory.open(next(iter(variants.values()))[0]).config_file)).workload.network
        panels = {
            label: {score: scores[:, :, SCORES.index(score)] for score in SCORES[:3]} for label, scores in found.items()
        }
        marks = {name: np.array(share / 100) for name, share in PAPERS[network].items()}
        drawn = latent_plots.sweep_plot(panels, values, options.option.rpartition(".")[2], marks)
        options.figure.write_bytes(drawn)


if __name__ == "__main__":
    main()
