"""Write every knob with its default into pyproject.toml, where Flower reads them: python scripts/write_knobs.py."""

from __future__ import annotations

from pathlib import Path

import tomli_w

from fedlab.config.schema import knobs
from fedlab.launch import sections

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
MARK = "# Every knob with its default, written by scripts/write_knobs.py.\n"


def table() -> str:
    """The table of knobs as TOML."""
    flat = {knob.key: knob.default for knob in knobs(sections()).values()}
    return MARK + tomli_w.dumps({"tool": {"flwr": {"app": {"config": flat}}}})


if __name__ == "__main__":
    text = PYPROJECT.read_text(encoding="utf-8")
    PYPROJECT.write_text(text.partition(MARK)[0] + table(), encoding="utf-8")
