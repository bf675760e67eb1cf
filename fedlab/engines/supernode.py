"""Flower's SuperNode, asking its server for messages often.

Flower asks every three seconds, and each round asks twice; where rounds are short, that is most of the time. The pause
is no setting of Flower's, so its module is given a clock that sleeps less. Should another version of Flower keep its
time in another way, nothing breaks: it then asks as often as it does by itself.

**Source**: Flower 1.39, ``flwr/supernode/start_client_internal.py``.
"""

from __future__ import annotations

import time
from typing import Any

from flwr.supernode import cli, start_client_internal

ASK_SECONDS = 0.3


class HastyClock:
    """The module ``time``, which never sleeps long."""

    @staticmethod
    def sleep(seconds: float) -> None:
        """Sleep for a while."""
        time.sleep(min(seconds, ASK_SECONDS))

    def __getattr__(self, name: str) -> Any:
        """Whatever else is in the module."""
        return getattr(time, name)


def flower_supernode() -> None:
    """Flower's command of this name."""
    start_client_internal.__dict__["time"] = HastyClock()
    cli.flower_supernode()
