"""``fedlab molecules``: pictures of what a run's model makes of molecules."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlab.cli.consoles import stdout
from fedlab.errors import ConfigError

if TYPE_CHECKING:
    from fedlab.inference.latent_space import LatentSpace

PAIRS = 3
FOLDER = "latents"


def molecules(
    run_dir: Annotated[Path, typer.Argument(help="A run directory of workload molecules.")],
    pair: Annotated[
        list[str] | None,
        typer.Option(help="Two SMILES with > between them: a path from the first to the second; may be repeated."),
    ] = None,
    steps: Annotated[int, typer.Option(min=2, max=20, help="Molecules on a path, ends included.")] = 8,
) -> None:
    """Look at the latents of a run's newest model: paths between molecules, directions of QED and logP.

    Writes latents/path.png, latents/qed.png and latents/logp.png into the run directory, and prints what they show.
    Without --pair, paths are between the test file's first molecules. The two figures of a property are correlations on
    the test file: of a linear regression on all latents, and of the one direction that is walked.

    Example: `fedlab molecules runs/graphnvp-qm9-0 --pair "CCO>c1ccccc1"`
    """
    from rich.table import Table

    from fedlab.plugins import load_module

    load_module("fedlab.evaluation.latent_plots", "`fedlab molecules`")  # RDKit's libraries may be missing
    from fedlab.evaluation import latent_plots
    from fedlab.files import write_atomically
    from fedlab.inference import latent_space

    space = latent_space.LatentSpace.open(run_dir)
    pairs = [_pair(text) for text in pair] if pair else _first_pairs(space)
    lines = [space.interpolate(first, second, steps) for first, second in pairs]
    folder = run_dir.resolve() / FOLDER
    folder.mkdir(exist_ok=True)
    caption = f"Straight lines between molecules in latent space, {space.name} after round {space.round}"
    write_atomically(folder / "path.png", latent_plots.interpolation_plot(pairs, lines, caption))
    table = Table(
        title=f"Directions in the latent space of {space.name} after round {space.round}", title_justify="left"
    )
    for head in (
        "property",
        "regression",
        "direction",
        *(f"{step:+.0f} sd" for step in (-latent_space.MAX_STD, 0, latent_space.MAX_STD)),
        "valid",
    ):
        table.add_column(head, justify="left" if head == "property" else "right")
    for name in ("qed", "logp"):
        along = latent_space.fit_direction(space, name)
        walk = latent_space.traverse(space, along)
        best = max(range(len(walk.decoded)), key=lambda row: len(set(walk.decoded[row]) - {None}))
        caption = f"correlation {along.regression:.2f}; along the direction {along.correlation:.2f}"
        drawn = latent_plots.direction_plot(
            name, along.true, along.predicted, caption, walk.steps, walk.values, best, walk.decoded[best]
        )
        write_atomically(folder / f"{name}.png", drawn)
        middle = len(walk.steps) // 2
        means = [f"{walk.means[at]:.2f}" for at in (0, middle, -1)]
        table.add_row(
            name, f"{along.regression:.2f}", f"{along.correlation:.2f}", *means, f"{100 * walk.valid.mean():.0f} %"
        )
    stdout.print(table)
    decoded = sum(one is not None for line in lines for one in line)
    paths = "1 path" if len(lines) == 1 else f"{len(lines)} paths"
    stdout.print(f"{decoded} of {sum(map(len, lines))} points on {paths} are molecules", highlight=False)
    stdout.print(f"pictures  {folder}", highlight=False, soft_wrap=True)


def _pair(text: str) -> tuple[str, str]:
    first, arrow, second = text.partition(">")
    if not arrow or not first.strip() or not second.strip():
        raise ConfigError(f"--pair {text!r} is no pair; write two SMILES with > between them: CCO>c1ccccc1")
    return first.strip(), second.strip()


def _first_pairs(space: LatentSpace) -> list[tuple[str, str]]:
    """Return pairs of the test file's first molecules whose graphs lose nothing."""
    table = space.workload.tables()[1]
    whole = [one for one, meaning in zip(table.smiles, table.decoded_smiles, strict=True) if one == meaning][
        : 2 * PAIRS
    ]
    return list(zip(whole[::2], whole[1::2], strict=False))
