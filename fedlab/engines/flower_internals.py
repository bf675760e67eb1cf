"""Flower's private parts that fedlab uses: messages in one process, apps by reference, grids.

Flower exports no way to do these things, here and in the other modules ``flower_*``. When a new version of Flower moves
or changes one of them, its canary test fails, and its module is the only one to change. Imports of a second and more
are inside the functions that need them.

**Source**: Flower 1.39, named at each part.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeGuard

from flwr.app import Error, Message, RecordDict
from flwr.app.metadata import Metadata
from flwr.serverapp import Grid
from flwr.supercore import object_ref
from flwr.supercore.constant import SYSTEM_MESSAGE_TYPE
from flwr.supercore.run import Run as Run
from flwr.supercore.run import RunNotRunningException as RunNotRunning
from flwr.supercore.task_identity import TaskIdentity

if TYPE_CHECKING:  # its import takes a second
    from flwr.superlink.grid.http_grid import HttpGrid

__all__ = ["Run", "RunNotRunning"]

# --- messages in one process: flwr/supercore/{task_identity,run}.py, flwr/app/{metadata,message/typeddict}.py ---


@contextmanager
def task_identity(run_id: int, node_id: int, task_id: int = 1) -> Iterator[None]:
    """Set the process-wide identity, without which no ``Message`` can be made, while the context lasts."""
    before = TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, node_id, task_id
    try:
        yield
    finally:
        TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = before


def set_message_id(message: Message, message_id: str) -> None:
    """Give a message its id, as Flower's in-memory grid does."""
    message.metadata.__dict__["_message_id"] = message_id


def copy_records(content: RecordDict) -> RecordDict:
    """Return a content of copies of the same records, without the checks of each that their way in would repeat."""
    copied = content.copy()
    records: dict[str, Any] = copied.__dict__["_data"]
    for name, record in records.items():
        records[name] = record.copy()
    return copied


def message_with(body: RecordDict | Error, metadata: Metadata) -> Message:
    """Return a message of existing metadata, as Flower makes one from its protocol buffer."""
    kind: Any = Message  # its overloads leave this way out
    made: Message = kind(body, metadata=metadata)
    return made


def error_reply(run_id: int, node: int, message_id: str, error: Error) -> Message:
    """Return an error in place of a node's reply to a message of that id, as Flower's server makes one."""
    return message_with(error, Metadata(run_id, "", node, 0, message_id, "", time.time(), 0.0, SYSTEM_MESSAGE_TYPE))


def set_task_identity(run_id: int, node_id: int, task_id: int = 1) -> None:
    """Set the process-wide identity for good, in a process that has no other."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, node_id, task_id


def empty_run(run_id: int) -> Run:
    """Return a run record with nothing but its id."""
    return Run.create_empty(run_id=run_id)


# --- apps by reference: flwr/supercore/object_ref.py ---


def load_app(reference: str) -> Any:
    """Return the app at ``module:attribute``; Exception when there is none."""
    return object_ref.load_app(reference, Exception)


def app_error(reference: str) -> str:
    """Return why the app at ``module:attribute`` cannot be imported; empty when it can."""
    try:
        valid, reason = object_ref.validate(reference, check_module=True)
    except ImportError as error:  # the package above the module
        valid, reason = False, str(error)
    return "" if valid else ((reason or "").splitlines() or ["unknown reason"])[0]


# --- grids: flwr/superlink/grid/http_grid.py ---


def is_http_grid(grid: Grid) -> TypeGuard[HttpGrid]:
    """Return True for the grid of a ServerApp that is a process of its own, which asks a SuperLink for its messages."""
    module = sys.modules.get(
        "flwr.superlink.grid.http_grid"
    )  # whose import takes a second: who has one has imported it
    return module is not None and isinstance(grid, module.HttpGrid)
