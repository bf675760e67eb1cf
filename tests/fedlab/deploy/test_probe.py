"""Knocking at real gRPC servers: the right one, wrong ones, and nobody."""

from __future__ import annotations

import datetime
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest

from fedlab.deploy import provision
from fedlab.deploy.probe import parse_address, probe_server
from fedlab.errors import ConfigError, RunError


@contextmanager
def server(folder=None):
    """A gRPC server with the credentials of a folder, or without TLS; its address."""
    running = grpc.server(ThreadPoolExecutor(1))
    if folder is None:
        port = running.add_insecure_port("127.0.0.1:0")
    else:
        pair = (folder / "server.key").read_bytes(), (folder / "server.crt").read_bytes()
        port = running.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    running.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        running.stop(None).wait()


@contextmanager
def answering(reply):
    """Something that answers whatever comes with the same bytes, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def loop():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(1000)
                    connection.sendall(reply)

        threading.Thread(target=loop, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def folder(tmp_path):
    provision.create_credentials(tmp_path / "certs")
    return tmp_path / "certs"


def test_the_right_server_is_there(folder):
    with server(folder) as address:
        assert probe_server(address, folder / "ca.crt") == ""
        assert probe_server(address.replace("127.0.0.1", "localhost"), folder / "ca.crt") == ""
    with server() as address:
        assert probe_server(address, None) == ""


@pytest.mark.parametrize("secure", [True, False])
def test_nobody_is_no_error(folder, secure):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    trusted = folder / "ca.crt" if secure else None
    assert probe_server(f"127.0.0.1:{port}", trusted) == "Connection refused"
    assert probe_server("no-such-host.invalid:9092", trusted)
    with answering(b"") as address:  # a tunnel whose other end is not there
        assert probe_server(address, trusted) == "it hung up"


def test_a_server_of_another_authority(folder, tmp_path):
    provision.create_credentials(tmp_path / "other")
    with server(tmp_path / "other") as address, pytest.raises(RunError, match=r"is not the one that .*ca.crt vouches"):
        probe_server(address, folder / "ca.crt")


def test_an_expired_certificate_and_one_that_is_not_valid_yet(folder, monkeypatch):
    provision.create_credentials(folder, days=-1, force=True)
    with server(folder) as address, pytest.raises(RunError, match="has expired; its owner makes a new one"):
        probe_server(address, folder / "ca.crt")
    monkeypatch.setattr(provision, "CLOCK_SKEW", datetime.timedelta(hours=-2))
    provision.create_credentials(folder, force=True)
    with server(folder) as address, pytest.raises(RunError, match="is not valid yet; is this machine's clock right"):
        probe_server(address, folder / "ca.crt")


def test_a_certificate_for_another_host(folder, monkeypatch):
    monkeypatch.setattr(provision, "LOCAL", ())
    (folder / "server.crt").unlink()
    provision.create_credentials(folder, hosts=["lab.example.org"])
    with server(folder) as address:
        for host in ("127.0.0.1", "localhost"):
            with pytest.raises(RunError, match=rf"is not for '{host}'; its owner adds the name with"):
                probe_server(address.replace("127.0.0.1", host), folder / "ca.crt")


def test_tls_on_one_side_only(folder):
    with server() as address, pytest.raises(RunError, match="does not speak TLS; if it is one of `fedlab serve --ins"):
        probe_server(address, folder / "ca.crt")
    with server(folder) as address, pytest.raises(RunError, match="expects TLS; join without --insecure"):
        probe_server(address, None)


def test_something_else(folder):
    with answering(b"SSH-2.0-OpenSSH_9.6\r\n") as address:
        with pytest.raises(RunError, match="is no server of fedlab"):
            probe_server(address, None)
        with pytest.raises(RunError, match="does not speak TLS"):
            probe_server(address, folder / "ca.crt")


def test_addresses():
    assert parse_address("lab.example.org:9092") == ("lab.example.org", 9092)
    assert parse_address("[::1]:9092") == ("::1", 9092)
    without_port = ("lab", "lab:", ":9092", "lab:http", "lab:0", "lab:70000")
    for address in (*without_port, "::1:9092", "::9092", "[lab]:9092", "me@lab:9092"):
        with pytest.raises(ConfigError, match="is no HOST:PORT of a server"):
            parse_address(address)
