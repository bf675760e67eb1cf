"""``fedlab new``: a package of one's own to start from."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fedlab.cli.consoles import stdout
from fedlab.scaffold import write_package


class NewKind(StrEnum):
    """Kinds of files that `fedlab new` writes."""

    workload = "workload"
    strategy = "strategy"


def new(
    kind: Annotated[NewKind, typer.Argument(help="What it is.")],
    name: Annotated[str, typer.Argument(help="Its name: letters, digits and _ in lower case.")],
    folder: Annotated[Path, typer.Option(help="Where its folder is made.")] = Path(),
) -> None:
    """Write a package with a workload or strategy of your own, its contract test and its packaging; it runs as it is.

    Example: `fedlab new workload my_task`
    """
    paths = write_package(kind.value, name, folder)
    for path in paths:
        stdout.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)
    stdout.print(
        f"\ntry it:    cd {paths[0].parent} && fedlab run {name}:PRESET\n"
        f"test it:   cd {paths[0].parent} && python -m pytest  (needs `pip install pytest`)\n"
        f"share it:  pip install -e {paths[0].parent}, then `fedlab run {name}` anywhere on this machine",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
