"""Proxies: the probe and gRPC go the same way; this machine is reached directly; what does not work is named.

Clients that join by way of one are in ``tests/fedlab/engines/test_grpc_photos.py``.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from fedlab.deploy import provision, proxies
from fedlab.deploy.probe import probe_server
from fedlab.engines import processes
from fedlab.engines.flower_control import Control
from fedlab.environment import with_environment
from tunnels import tunnel_proxy

NAMES = (*proxies.VARIABLES, "HTTP_PROXY", "no_proxy", "NO_PROXY", "no_grpc_proxy")
READY = """
import sys, grpc
with open(sys.argv[2], "rb") as file:
    trusted = grpc.ssl_channel_credentials(file.read())
with grpc.secure_channel(sys.argv[1], trusted) as channel:
    grpc.channel_ready_future(channel).result(20)
"""


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def certs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certs")
    provision.create_credentials(folder, hosts=["lab.invalid"])
    return folder


@pytest.fixture(scope="module")
def port(certs):
    server = grpc.server(ThreadPoolExecutor(1))
    pair = (certs / "server.key").read_bytes(), (certs / "server.crt").read_bytes()
    number = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    server.start()
    yield number
    server.stop(None).wait()


@pytest.fixture
def free():
    """A port at which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.getsockname()[1]
    return number


def found(host, **variables):
    proxy, sentence = proxies.find_proxy(host, variables)
    return (proxy.variable if proxy else None), sentence


@pytest.mark.parametrize("variable", proxies.VARIABLES)
def test_a_proxy_of_each_variable_is_used_for_another_machine(variable, certs, port, monkeypatch):
    with tunnel_proxy() as proxy:
        monkeypatch.setenv(variable, proxy.url)
        assert probe_server(f"lab.invalid:{port}", certs / "ca.crt") == ""
        assert proxy.requests[0].startswith(f"CONNECT lab.invalid:{port} HTTP/1.1\r\n")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.0.0.7", "::1", "LOCALHOST."])
def test_this_machine_is_reached_directly(host):
    assert found(host, https_proxy="http://127.0.0.1:9") == (None, "")


def test_the_probe_of_this_machine_knows_no_proxy(certs, port, free, monkeypatch):
    for name in proxies.VARIABLES:
        monkeypatch.setenv(name, f"http://127.0.0.1:{free}")
    assert probe_server(f"localhost:{port}", certs / "ca.crt") == ""
    assert proxies.grpc_variables("localhost") == {"grpc_proxy": ""}


@pytest.mark.parametrize(
    ("host", "exceptions"),
    [
        *(("lab.example.org", exceptions) for exceptions in ("x, example.org", ".example.org", "*")),
        *(("10.1.2.3", exceptions) for exceptions in ("10.1.2.3", "10.0.0.0/8")),
        ("fd00::7", "fd00::/8"),
    ],
)
def test_what_no_proxy_names_is_reached_directly(host, exceptions):
    assert found(host, https_proxy="http://p:1") == ("https_proxy", "")
    assert found(host, https_proxy="http://p:1", no_proxy=exceptions) == (None, "")
    assert found(host, https_proxy="http://p:1", no_proxy="other.org,10.2.0.0/16") == ("https_proxy", "")


@pytest.mark.parametrize("url", ["socks5h://127.0.0.1:9", "https://127.0.0.1:9", "http://127.0.0.1:nine", "http://"])
def test_a_proxy_that_cannot_be_used_is_named_where_the_server_cannot_be_reached_without(url, certs, monkeypatch):
    monkeypatch.setenv("ALL_PROXY", url)
    reason = probe_server("lab.invalid:9092", certs / "ca.crt")
    assert "ALL_PROXY" in reason and "http" in reason


def test_a_proxy_that_is_not_there_or_refuses_is_named_without_its_password(certs, port, free, monkeypatch):
    monkeypatch.setenv("https_proxy", f"http://me:secret@127.0.0.1:{free}")
    reason = probe_server(f"lab.invalid:{port}", certs / "ca.crt")
    assert f"the proxy 127.0.0.1:{free} (https_proxy): Connection refused; unset https_proxy, or name" in reason
    for refusal in ("403 Forbidden", "407 Proxy Authentication Required", "502 Bad Gateway"):
        with tunnel_proxy(refusal) as proxy:
            monkeypatch.setenv("https_proxy", proxy.url.replace("//", "//me:secret@"))
            reason = probe_server(f"lab.invalid:{port}", certs / "ca.crt")
            assert f"(https_proxy) answered {refusal}" in reason and "secret" not in reason
            assert "Proxy-Authorization: Basic bWU6c2VjcmV0\r\n" in proxy.requests[0]


def test_grpc_goes_the_way_of_the_probe(certs, port, free):
    def reach(host):
        command = [sys.executable, "-c", READY, f"{host}:{port}", str(certs / "ca.crt")]
        ran = subprocess.run(
            command, env={**os.environ, **proxies.grpc_variables(host)}, capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stderr

    with tunnel_proxy() as proxy, with_environment({"HTTPS_PROXY": proxy.url, "no_proxy": "localhost"}):
        reach("lab.invalid")
        assert len(proxy.requests) == 1
    assert "HTTPS_PROXY" not in os.environ
    with with_environment({"https_proxy": f"http://127.0.0.1:{free}"}):
        reach("localhost")


def test_programs_of_flower_start_with_a_proxy_that_httpx_cannot_use(tmp_path, monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks5h://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    environment = processes.environment(tmp_path, {})
    assert "ALL_PROXY" not in environment and environment["https_proxy"] == "http://127.0.0.1:9"
    assert environment["grpc_proxy"] == ""
    Control("127.0.0.1:9", None).close()
    assert os.environ["ALL_PROXY"] == "socks5h://127.0.0.1:9"
