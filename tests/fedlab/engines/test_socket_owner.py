"""The owner of the other end of a connection over the loopback, and a server that hears its own user only."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from fedlab.engines import socket_owner
from fedlab.engines.socket_owner import connection_owner, own_connections_only
from waiting import wait_until

STRANGER = 65534
REQUEST = b"GET / HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n"
pytestmark = pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="only Linux tells who owns a socket")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_both_ends_of_a_connection_are_this_user_s_and_a_closed_one_is_nobody_s(host):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, 0), family=family)
    except OSError:
        pytest.skip("no such loopback here")
    with listener:
        near = socket.create_connection(listener.getsockname()[:2])
        far, _ = listener.accept()
        ends = near.getsockname()[:2], near.getpeername()[:2]
        with near, far:
            assert connection_owner(*ends) == connection_owner(*ends[::-1]) == os.getuid()
    assert connection_owner(*ends) is None


def test_addresses_are_written_as_in_the_kernels_table():
    assert socket_owner._encoded("127.0.0.1", 40117) == "0100007F:9CB5"
    assert socket_owner._encoded("::1", 80) == "00000000000000000000000001000000:0050"


async def yes(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"yes"})


@pytest.fixture(scope="module")
def port():
    """The port of a server that hears its own user only."""
    config = uvicorn.Config(
        yes, "127.0.0.1", 0, http=own_connections_only(AutoHTTPProtocol), lifespan="off", ws="none", log_config=None
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started, "the server", 10)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join()


def answer(port):
    """The answer to a request from this process; nothing where the server closes."""
    with socket.create_connection(("127.0.0.1", port)) as connection, suppress(ConnectionError):
        connection.sendall(REQUEST)
        with connection.makefile("rb") as stream:
            return stream.read()
    return b""


@contextmanager
def as_user(user):
    before = os.geteuid()
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(before)


def test_its_own_user_is_answered(port):
    assert b"yes" in answer(port)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can open a socket in another user's name")
def test_another_user_is_not(port, capfd):
    with as_user(STRANGER):
        assert answer(port) == b""
    assert "another user" in capfd.readouterr().err
    assert b"yes" in answer(port)


def test_without_such_a_table_everybody_is_answered(port, monkeypatch, tmp_path):
    monkeypatch.setattr(socket_owner, "TABLES", {4: tmp_path / "none"})
    assert b"yes" in answer(port)
