"""Flower's SuperLink and SuperNode as this package runs them; what they start is forked from a process that is loaded.

Each is a context that yields the function to run, for `fedlab.engines.processes.start`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fedlab.comm.foreign_text import REFUSED
from fedlab.engines import flower_limits as limits
from fedlab.engines import flower_programs as flower
from fedlab.engines.flower_calls import limit_calls_at_a_time
from fedlab.engines.flower_pauses import CORE_STATE, LINK_STATES, ignore_pauses
from fedlab.engines.flower_repeats import answer_repeated_calls
from fedlab.engines.fork_server import fork_server
from fedlab.engines.socket_owner import take_own_connections_only
from fedlab.references import load_reference

CLIENT_MODULES = ("fedlab.client.app",)  # by name: an engine imports no app
SERVER_MODULES = ("fedlab.server.app",)
CLIENT = dict.fromkeys(flower.CLIENT_APP, "fedlab.engines.programs:client_app")


@contextmanager
def flower_superlink() -> Iterator[Callable[[], None]]:
    """Run Flower's command of this name, with limits on what its clients send."""
    with fork_server(_scratch(), flower.SUPEREXEC | flower.SERVER_APP, SERVER_MODULES):
        limits.limit_calls()
        limit_calls_at_a_time()
        limits.limit_trees()
        ignore_pauses(LINK_STATES)
        take_own_connections_only()
        answer_repeated_calls()
        yield flower.run_superlink


@contextmanager
def flower_supernode() -> Iterator[Callable[[], None]]:
    """Run Flower's command of this name, with short pauses; what it starts runs the installed app and no other."""
    limits.import_client_app()  # once, for all forks
    with fork_server(_scratch(), flower.SUPEREXEC | CLIENT, CLIENT_MODULES):
        ignore_pauses((CORE_STATE,))
        take_own_connections_only()
        yield flower.run_supernode


def client_app() -> None:
    """Run Flower's command ``flwr-clientapp``, which runs the installed app and no other, whoever calls it."""
    limits.refuse_foreign_bundles(CLIENT_MODULES, REFUSED)
    (entry,) = flower.CLIENT_APP.values()
    load_reference(entry)()


def _scratch() -> Path:
    return Path(os.environ["FLWR_HOME"]).parent
