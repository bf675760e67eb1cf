"""Flower's private parts, continued: how many calls a SuperLink takes at a time, from whom, and each of them once.

A call's content lies in memory from its first byte until it is answered, and Flower reads a thousand at a time. Here
each registered key has a few, and all others together as many: who it is stands in the head of a call, and what is too
much is refused before anything of its content is read. Flower's SuperNodes try again after such a refusal.

A key signs the time of a call and nothing else of it, and Flower takes such a time for five minutes. So whoever sees
the head of a call could take this client's messages, or say goodbye for it. Here a key has each of its times once.

**Source**: Flower 1.39, ``flwr/superlink/cli/flower_superlink.py``,
``flwr/server/superlink/fleet/grpc_rere/node_auth_server_interceptor.py``.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib import import_module
from typing import Any

import grpc

from fedlab.comm.credentials import CLOCK_AHEAD, CLOCK_BEHIND

MAX_CALLS = 8  # of one key at a time; a SuperNode sends two objects, asks for two, and says that it is there
STRANGERS = b""  # in the place of a key that is not registered
MAX_TIMES = 100_000  # calls of one key whose times are known, at about 100 bytes each: 300 a second, all the time
CLOCK = "fedlab: clock of public key: "  # begin of a line in the log about a client whose clock is wrong


class TooManyCalls(Exception):
    """One call more than a key may make at a time, or one that was made before."""


class UsedTimes:
    """The times that one key has signed, as long as Flower would take them again.

    Parameters
    ----------
    seconds
        How long Flower takes a time.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self._lock = seconds, threading.Lock()
        self._used: dict[datetime, None] = {}  # in the order in which they came

    def use(self, time: datetime, now: datetime) -> None:
        """Use a time, once.

        Raises
        ------
        TooManyCalls
            When it was taken before, or ``MAX_TIMES`` others were.
        """
        with self._lock:
            while self._used and (now - (oldest := next(iter(self._used)))).total_seconds() > self.seconds:
                del self._used[oldest]
            if time in self._used:
                raise TooManyCalls("a call that was made before")
            if len(self._used) >= MAX_TIMES:
                raise TooManyCalls(f"more than {MAX_TIMES} calls in {self.seconds:g} s")
            self._used[time] = None


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
        self._times: dict[bytes, UsedTimes] = {}  # by key

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """Return a handler that reads the content of a call only if there is room for it, and it is a new one."""
        from flwr.common.constant import PUBLIC_KEY_HEADER
        from flwr.supercore.utils import get_metadata_bytes

        handler = continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:  # no such method
            return handler
        head = handler_call_details.invocation_metadata
        if handler.request_deserializer is None:  # the key is missing, or its signature or time is not valid
            self._report_clock(head)
            return grpc.stream_unary_rpc_method_handler(lambda _, context: handler.unary_unary(None, context))
        key = get_metadata_bytes(head, PUBLIC_KEY_HEADER) or STRANGERS

        def limited(requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
            try:
                registered = self.is_registered(key)
                with self.room(key if registered else STRANGERS):
                    if registered:
                        self._use_time(key, head)
                    return handler.unary_unary(next(requests), context)
            except (TooManyCalls, StopIteration) as error:
                context.abort(grpc.StatusCode.UNAVAILABLE, str(error) or "the call has no content")

        # A handler of a stream begins before its first message is read, one of a single message once it is there.
        return grpc.stream_unary_rpc_method_handler(limited, handler.request_deserializer, handler.response_serializer)

    def _use_time(self, key: bytes, head: Any) -> None:
        """Use the time of a call whose signature is valid; TooManyCalls when the key has used it before."""
        from flwr.common.constant import TIMESTAMP_HEADER
        from flwr.supercore.date import now
        from flwr.supercore.utils import get_metadata_str

        if not (time := get_metadata_str(head, TIMESTAMP_HEADER)):  # a server that asks for no signature
            return
        with self._lock:
            times = self._times.setdefault(key, UsedTimes(CLOCK_AHEAD + CLOCK_BEHIND))
        times.use(datetime.fromisoformat(time), now())

    def _report_clock(self, head: Any) -> None:
        """Log by how much the clock of a registered client differs, where that is why its call is refused."""
        from flwr.common.constant import PUBLIC_KEY_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER
        from flwr.supercore.date import now
        from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature
        from flwr.supercore.utils import get_metadata_bytes, get_metadata_str

        key, signature = (get_metadata_bytes(head, name) for name in (PUBLIC_KEY_HEADER, SIGNATURE_HEADER))
        time = get_metadata_str(head, TIMESTAMP_HEADER)
        if not (key and signature and time and self.is_registered(key)):
            return
        if verify_signature(bytes_to_public_key(key), time.encode("ascii"), signature):
            ahead = (datetime.fromisoformat(time) - now()).total_seconds()
            print(f"{CLOCK}{key!r} {ahead:.0f} s", file=sys.stderr, flush=True)

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
