"""Flower's private parts, continued: how many calls a SuperLink takes at a time, and from whom.

A call's content lies in memory from its first byte until it is answered, and Flower reads a thousand at a time. Here
each registered key has a few, and all others together as many: who it is stands in the head of a call, and what is too
much is refused before anything of its content is read. Flower's SuperNodes try again after such a refusal.

**Source**: Flower 1.39, ``flwr/superlink/cli/flower_superlink.py``,
``flwr/server/superlink/fleet/grpc_rere/node_auth_server_interceptor.py``.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import grpc

MAX_CALLS = 8  # of one key at a time; a SuperNode sends two objects, asks for two, and says that it is there
STRANGERS = b""  # in the place of a key that is not registered


class TooManyCalls(Exception):
    """One call more than a key may make at a time."""


class CallLimit(grpc.ServerInterceptor):  # type: ignore[misc]
    """The outermost interceptor of a server: it decides whether the content of a call is read at all.

    Parameters
    ----------
    is_registered
        Returns True if a public key is registered.
    """

    def __init__(self, is_registered: Callable[[bytes], bool]) -> None:
        self.is_registered = is_registered
        self._lock, self._calls = threading.Lock(), Counter[bytes]()

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """Return a handler that reads the content of a call only if there is room for it."""
        from flwr.common.constant import PUBLIC_KEY_HEADER
        from flwr.supercore.utils import get_metadata_bytes

        handler = continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:  # no such method
            return handler
        if handler.request_deserializer is None:  # the key is missing, or its signature is not valid
            return grpc.stream_unary_rpc_method_handler(lambda _, context: handler.unary_unary(None, context))
        key = get_metadata_bytes(handler_call_details.invocation_metadata, PUBLIC_KEY_HEADER) or STRANGERS

        def limited(requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
            try:
                with self.room(key if self.is_registered(key) else STRANGERS):
                    return handler.unary_unary(next(requests), context)
            except (TooManyCalls, StopIteration) as error:
                context.abort(grpc.StatusCode.UNAVAILABLE, str(error) or "the call has no content")

        # A handler of a stream begins before its first message is read, one of a single message once it is there.
        return grpc.stream_unary_rpc_method_handler(limited, handler.request_deserializer, handler.response_serializer)

    @contextmanager
    def room(self, key: bytes) -> Iterator[None]:
        """Count one call of a key while the context lasts.

        Raises
        ------
        TooManyCalls
            When it has ``MAX_CALLS`` already.
        """
        with self._lock:
            if self._calls[key] >= MAX_CALLS:
                raise TooManyCalls(f"more than {MAX_CALLS} calls at a time")
            self._calls[key] += 1
        try:
            yield
        finally:
            with self._lock:
                self._calls[key] -= 1
                self._calls += Counter()  # which leaves out keys without calls


def limit_calls_at_a_time() -> None:
    """Let the SuperLinks that this process starts limit the calls of each key, see :class:`CallLimit`."""
    module = import_module("flwr.superlink.cli.flower_superlink")  # the package has a function of this name
    create = module.__dict__["generic_create_grpc_server"]

    def limited(servicer_and_add_fn: Any, *arguments: Any, interceptors: Any = None, **options: Any) -> Any:
        states = servicer_and_add_fn[0].state_factory

        def is_registered(key: bytes) -> bool:
            return states.state().get_node_id_by_public_key(key) is not None

        first = CallLimit(is_registered)
        return create(servicer_and_add_fn, *arguments, interceptors=[first, *(interceptors or ())], **options)

    module.__dict__["generic_create_grpc_server"] = limited
