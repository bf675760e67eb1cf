"""Draw what a run prints as an SVG: python scripts/picture.py RUN_DIR docs/images/run.svg."""

from __future__ import annotations

import io
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

from fedlab.cli.common import show_result
from fedlab.runs.progress import round_line
from fedlab.runs.result import Result


def draw(run: Path, picture: Path) -> None:
    """The lines of the rounds and the closing table, as a terminal shows them."""
    result = Result.read(run)
    console = Console(record=True, width=104, file=io.StringIO(), force_terminal=True)
    name, seed = result.config["name"], result.config["seed"]
    console.print(f"[bold]$ fedlab run {name} --seed {seed}[/]")
    for record in result.rounds:
        console.print(
            Text(round_line({**record, "rounds": result.config["rounds"]}, result.metric_table), style="dim"),
            highlight=False,
        )
    shown = Console(width=console.width, file=io.StringIO(), force_terminal=True)
    show_result(result, shown)
    assert isinstance(shown.file, io.StringIO)
    text = shown.file.getvalue().replace(f"{result.directory.parent.parent}/", "")  # as where `fedlab run` was typed
    console.print(Text.from_ansi(text), highlight=False)
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_text(console.export_svg(title="fedlab"), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
