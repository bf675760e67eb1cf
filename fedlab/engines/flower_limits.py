"""Flower's private parts, continued: limits of a SuperLink against its clients, and of a SuperNode against its server.

Each is a function that changes the process which then runs Flower's program. Their canary is ``test_flower_limits.py``.

**Source**: Flower 1.39, named at each part.
"""

from __future__ import annotations

import io
import sys
import tomllib
import zipfile
from collections.abc import Callable, Collection, Iterable
from importlib import import_module
from typing import Any

from fedlab.engines.flower_objects import MAX_DEPTH

MAX_CALL_BYTES = 32_000_000  # of one gRPC call: a piece of an array has 5 MB, the records of a reply at most 16
MAX_TREE_OBJECTS = 100_000  # objects of a message, those that it names several times counted each time
PROJECT, INDEX = "pyproject.toml", ".info/"  # all that a bundle of `flower_internals.Control` holds


class ForeignBundle(Exception):
    """A bundle that would run other code than the client's installed app."""


# --- a SuperLink: flwr/superlink/cli/flower_superlink.py, flwr/supercore/object_store/in_memory_object_store.py ---


def limit_calls() -> None:
    """Let the SuperLinks of this process refuse a gRPC call that is larger than ``MAX_CALL_BYTES``; Flower takes 2 GB.

    Whether a client is registered is looked up once its call has come as a whole.
    """
    module = import_module("flwr.superlink.cli.flower_superlink")  # the package has a function of this name
    module.__dict__["GRPC_MAX_MESSAGE_LENGTH"] = MAX_CALL_BYTES


def limit_trees() -> None:
    """Let the stores of this process refuse a message whose tree of objects is too deep, or has too many of them.

    A tree may name one object many times, and Flower copies it each time: 24 objects in a row, each with the next one
    twice as child, are 16 million. The store refuses such a message, which its server then finds gone.
    """
    from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
    from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore

    preregister = InMemoryObjectStore.preregister

    def checked(self: InMemoryObjectStore, run_id: int, object_tree: Any) -> list[str]:
        check_tree(object_tree, lambda tree: tree.children)
        new: dict[str, list[str]] = {}  # object id to its children, of which the store takes the first
        for part in iterate_object_tree(object_tree):
            new.setdefault(part.object_id, [child.object_id for child in part.children])
        with self.lock_store:
            stored = self.store
            check_tree(
                object_tree.object_id,
                lambda one: stored[one].child_object_ids if one in stored else new.get(one, ()),
            )
            return preregister(self, run_id, object_tree)

    InMemoryObjectStore.preregister = checked  # type: ignore[method-assign]


def check_tree(root: Any, children: Callable[[Any], Iterable[Any]]) -> None:
    """Walk through a tree until its end, or until it is too large.

    Raises
    ------
    ValueError
        When it is deeper than ``MAX_DEPTH``, or has more than ``MAX_TREE_OBJECTS`` objects.
    """
    waiting, seen = [(root, 1)], 1
    while waiting:
        one, depth = waiting.pop()
        below = list(children(one))
        seen += len(below)
        if seen > MAX_TREE_OBJECTS or (below and depth >= MAX_DEPTH):
            raise ValueError(
                f"a message of more than {MAX_TREE_OBJECTS} objects, or of objects in one another more than "
                f"{MAX_DEPTH} deep"
            )
        waiting += [(child, depth + 1) for child in below]


# --- a SuperNode's apps: flwr/supernode/runtime/run_clientapp.py, flwr/cli/build.py ---


def import_client_app() -> None:
    """Import what a process needs that is to run a ClientApp."""
    import_module("flwr.supernode.cli")
    import_module("flwr.supernode.runtime.run_clientapp")


def refuse_foreign_bundles(modules: Collection[str], prefix: str) -> None:
    """Let the ClientApp processes of this process run an installed app only, whatever bundle their server sends.

    Parameters
    ----------
    modules
        Modules of the apps that may run.
    prefix
        Begin of the line by which the client's owner is told.
    """
    from flwr.supernode.runtime import run_clientapp as module

    install: Any = module.__dict__["install_from_fab"]

    def checked(bundle: bytes, *arguments: Any, **options: Any) -> Any:
        try:
            check_bundle(bundle, modules)
        except ForeignBundle as error:
            print(f"{prefix}{error}", file=sys.stderr, flush=True)
            raise
        return install(bundle, *arguments, **options)

    module.__dict__["install_from_fab"] = checked


def check_bundle(bundle: bytes, modules: Collection[str]) -> None:
    """Check that a bundle holds nothing but the name and the options of an installed app.

    Raises
    ------
    ForeignBundle
        When it brings files of its own, or names another app.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
            others = [name for name in archive.namelist() if name != PROJECT and not name.startswith(INDEX)]
            app = tomllib.loads(archive.read(PROJECT).decode())["tool"]["flwr"]["app"]["components"]["clientapp"]
    except Exception as error:  # whatever a server may send
        raise ForeignBundle(f"the server sent a bundle that cannot be read: {type(error).__name__}") from None
    if others:
        raise ForeignBundle(f"the server sent code of its own ({others[0][:80]!r}), which this client does not run")
    if str(app).partition(":")[0] not in modules:
        raise ForeignBundle(f"the server asked for the app {str(app)[:80]!r}; this client runs its installed one only")
