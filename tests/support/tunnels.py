"""A small HTTP proxy that does what CONNECT asks, on the loopback; any host name is this machine."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class TunnelProxy:
    """What was asked of the proxy (``requests``), and its URL."""

    def __init__(self, listener: socket.socket, refusal: str) -> None:
        self.listener, self.refusal = listener, refusal
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.requests: list[str] = []

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._tunnel, args=(connection,), daemon=True).start()

    def _tunnel(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                if not (part := connection.recv(4096)):
                    return
                head += part
            self.requests.append(head.decode())
            if self.refusal:
                connection.sendall(f"HTTP/1.1 {self.refusal}\r\n\r\n".encode())
                return
            port = int(head.split()[1].rpartition(b":")[2])
            with socket.create_connection(("127.0.0.1", port)) as server:
                connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                threading.Thread(target=_copy, args=(connection, server), daemon=True).start()
                _copy(server, connection)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while part := source.recv(65536):
            target.sendall(part)
        target.shutdown(socket.SHUT_WR)


@contextmanager
def tunnel_proxy(refusal: str = "") -> Iterator[TunnelProxy]:
    """Run a proxy; with ``refusal``, for instance "403 Forbidden", it answers nothing else."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = TunnelProxy(listener, refusal)
        threading.Thread(target=proxy.serve, daemon=True).start()
        yield proxy
        listener.shutdown(socket.SHUT_RDWR)
