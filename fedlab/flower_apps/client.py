"""The client app of somebody else, called so that its results repeat: each message on a random stream of its own.

It is found again by a worker process through an environment variable (:data:`APP`).
"""

from __future__ import annotations

import json
import os
import re
import socket
import traceback
import warnings
from contextlib import ExitStack
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message
from flwr.common.constant import PARTITION_ID_KEY, ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto

from fedlab.errors import ConfigError, FedlabError
from fedlab.exits import exits_as_errors
from fedlab.flower_apps.failures import explain
from fedlab.flower_apps.loading import importable, load
from fedlab.flower_apps.messages import round_of
from fedlab.flower_apps.project import FlowerProject
from fedlab.seeds import Stream, deterministic

APP = "FEDLAB_FLOWER_APP"  # environment variable: JSON of a project, the seed and the number of threads


class SeededClientApp:
    """Calls a ClientApp with a copy of each message, on the random stream of seed, kind, round and partition.

    Where a message does not say its round, the number of the message stands for it: it is the same on every engine.

    Parameters
    ----------
    project
        The app; its folder must be importable.
    client_app
        Its ClientApp.
    seed
        Run seed.
    """

    def __init__(self, project: FlowerProject, client_app: Any, seed: int) -> None:
        self.project, self.client_app, self.seed = project, client_app, seed

    def __call__(self, message: Message, context: Context) -> Message:
        """Return the client's reply; an exception becomes an error reply: what is missing, or the traceback."""
        number = round_of(message)
        stated = number if number is not None else re.sub(r"\D", "", message.metadata.message_id)
        names = (self.seed, message.metadata.message_type, stated, int(context.node_config[PARTITION_ID_KEY]))
        received = message_from_proto(message_to_proto(message))  # what it changes in place is its own
        with Stream(*names):
            try:
                with exits_as_errors():
                    reply: Message = self.client_app(received, context)
                return message_from_proto(message_to_proto(reply))
            except Exception as error:
                reason = explain(error, self.project) or traceback.format_exc()
                return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)


class WorkerClientApp:
    """The same in a worker process, made when the first message comes."""

    def __init__(self) -> None:
        self._stack = ExitStack()  # never left: the process has no other run

    @cached_property
    def _app(self) -> SeededClientApp:
        values = json.loads(os.environ[APP])
        project = FlowerProject(**{**values["project"], "path": Path(values["project"]["path"])})
        if not project.path.is_dir():
            raise ConfigError(
                f"{project.path} is no folder here; put {project.name} where all machines see it under the same path"
            )
        self._stack.enter_context(importable(project))
        self._stack.enter_context(reproducible(values["threads"]))
        return SeededClientApp(project, load(project, project.client), values["seed"])

    def __call__(self, message: Message, context: Context) -> Message:
        """Return the client's reply, as :class:`SeededClientApp`; an error where this machine cannot load the app."""
        try:
            app = self._app
        except FedlabError as lacking:
            reason = f"on {socket.gethostname()}: {lacking}"
            return Message(Error(ErrorCode.LOAD_CLIENT_APP_EXCEPTION, reason), reply_to=message)
        return app(message, context)


app = WorkerClientApp()


def worker_environment(project: FlowerProject, seed: int, threads: int) -> dict[str, str]:
    """Return the environment variable from which a worker process makes its app."""
    values = {"project": {**asdict(project), "path": str(project.path)}, "seed": seed, "threads": threads}
    return {APP: json.dumps(values)}


def reproducible(threads: int) -> ExitStack:
    """Return a context of so many threads and deterministic kernels; what has none is used without complaint."""
    stack = ExitStack()
    stack.enter_context(warnings.catch_warnings())
    warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation.*")
    stack.enter_context(deterministic(threads, strict=False))
    return stack
