"""Flower's SuperNode with short pauses, and with its client apps forked from a process that has all imports done."""

from __future__ import annotations

import os
from pathlib import Path

from fedlab.engines import flower_internals
from fedlab.engines.fork_server import fork_server

PRELOADED = ("fedlab.client.app", "torch.optim")  # by name: an engine imports no app


def flower_supernode() -> None:
    """Run Flower's command of this name."""
    scratch = Path(os.environ["FLWR_HOME"]).parent
    command, entry = flower_internals.CLIENT_APP_COMMAND, flower_internals.CLIENT_APP_ENTRY
    with fork_server(scratch, command, entry, PRELOADED):
        flower_internals.run_supernode()
