"""The rounds of Flower's servers, in either API: watched, and with clients in order.

**Source**: Flower 1.39, flwr/serverapp/strategy/strategy.py, flwr/server/server.py.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Protocol

from flwr.server import Server
from flwr.server import server as server_module
from flwr.serverapp.strategy import Strategy

from fedlab.errors import FedlabError


class ServerWatch(Protocol):
    """An object that is told what a server does beside its messages."""

    def on_start(self, strategy: str, rounds: int) -> None:
        """React to a strategy that begins with so many rounds."""
        ...

    def on_evaluate(self, number: int, metrics: Mapping[str, Any]) -> None:
        """React to the server's own test of the global model in a round."""
        ...


@contextmanager
def watched_servers(watch: ServerWatch) -> Iterator[None]:
    """Report to ``watch`` the strategies that start, in either API, and what they find when they test their model.

    Strategies of an app that have a ``start`` of their own are watched if their classes exist by now.
    """
    starts = {kind: kind.__dict__["start"] for kind in _subclasses(Strategy) if "start" in kind.__dict__}
    fit = Server.fit
    for kind, start in starts.items():
        kind.start = _watched_start(start, watch)
    Server.fit = _watched_fit(fit, watch)  # type: ignore[method-assign]
    try:
        yield
    finally:
        Server.fit = fit  # type: ignore[method-assign]
        for kind, start in starts.items():
            kind.start = start


def _subclasses(kind: type[Any]) -> list[type[Any]]:
    return [kind, *(below for child in kind.__subclasses__() for below in _subclasses(child))]


class _WatchedTest:
    def __init__(self, evaluate: Callable[[int, Any], Any], watch: ServerWatch) -> None:
        self.evaluate, self.watch = evaluate, watch

    def __call__(self, number: int, arrays: Any) -> Any:
        found = self.evaluate(number, arrays)
        self.watch.on_evaluate(number, found or {})
        return found


def _watched_start(start: Any, watch: ServerWatch) -> Any:
    signature = inspect.signature(start)

    @functools.wraps(start)
    def watched(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        evaluate = given.get("evaluate_fn")
        watch.on_start(type(args[0]).__name__, int(given.get("num_rounds") or 0))

        if evaluate is not None and not isinstance(evaluate, _WatchedTest):  # else by a start that calls its parent's
            given["evaluate_fn"] = _WatchedTest(evaluate, watch)
        return start(*bound.args, **bound.kwargs)

    return watched


def _watched_fit(fit: Any, watch: ServerWatch) -> Any:
    @functools.wraps(fit)
    def watched(server: Server, num_rounds: int, timeout: float | None) -> Any:
        strategy, evaluate = server.strategy, server.strategy.evaluate
        watch.on_start(type(strategy).__name__, num_rounds)

        def tested(server_round: int, parameters: Any) -> Any:
            found = evaluate(server_round, parameters)
            if found is not None:
                watch.on_evaluate(server_round, {"loss": found[0], **found[1]})
            return found

        strategy.evaluate = tested  # type: ignore[method-assign]
        try:
            return fit(server, num_rounds, timeout)
        finally:
            strategy.evaluate = evaluate  # type: ignore[method-assign]

    return watched


@contextmanager
def clients_in_order() -> Iterator[None]:
    """Let Flower's older server call its clients one after another in the order of nodes, in its own thread.

    It would call them from a pool of threads, and aggregate their results in the order of a set.
    """
    before = server_module.fit_clients, server_module.evaluate_clients
    fit, evaluate = server_module.fit_client, server_module.evaluate_client
    server_module.fit_clients = _in_order(fit, server_module._handle_finished_future_after_fit)
    server_module.evaluate_clients = _in_order(evaluate, server_module._handle_finished_future_after_evaluate)
    try:
        yield
    finally:
        server_module.fit_clients, server_module.evaluate_clients = before


def _in_order(call: Any, sort: Any) -> Any:
    def clients(client_instructions: Any, max_workers: int | None, timeout: float | None, group_id: int) -> Any:
        results: list[Any] = []
        failures: list[Any] = []
        for proxy, instructions in sorted(client_instructions, key=lambda one: one[0].node_id):
            future = Future[Any]()
            try:
                future.set_result(call(proxy, instructions, timeout, group_id))
            except FedlabError:  # the end of the run
                raise
            except Exception as error:
                future.set_exception(error)
            sort(future, results, failures)
        return results, failures

    return clients
