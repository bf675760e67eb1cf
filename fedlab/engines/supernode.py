"""Flower's SuperNode, asking its server for messages often, its client apps forked from a process that is warm.

Flower asks every three seconds, and each round asks twice; where rounds are short, that is most of the time. The pause
is no setting of Flower's, so its module is given a clock that sleeps less. Should another version of Flower keep its
time in another way, nothing breaks: it then asks as often as it does by itself.

Nor has Flower a setting for what :mod:`fedlab.engines.fork_server` does.

**Source**: Flower 1.39, ``flwr/supernode/start_client_internal.py``.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from flwr.supernode import cli, start_client_internal

from fedlab.engines import fork_server

MAX_SLEEP = 0.3
PRELOADED = ("fedlab.client.app", "torch.optim")  # by name: an engine imports no app


class CappedSleepClock:
    """The module ``time``, which never sleeps long."""

    @staticmethod
    def sleep(seconds: float) -> None:
        """Sleep for a while."""
        time.sleep(min(seconds, MAX_SLEEP))

    def __getattr__(self, name: str) -> Any:
        """Whatever else is in the module."""
        return getattr(time, name)


def flower_supernode() -> None:
    """Flower's command of this name."""
    start_client_internal.__dict__["time"] = CappedSleepClock()
    scratch = Path(os.environ["FLWR_HOME"]).parent
    with fork_server.fork_server(scratch, "flwr-clientapp", "flwr.supernode.cli:flwr_clientapp", PRELOADED):
        cli.flower_supernode()
