"""The commands of a deployment: what they refuse, and what they show."""

from __future__ import annotations

import os
import re
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from typer.testing import CliRunner

from fedlab.cli.app import app
from fedlab.deploy import client, provision

invoke = CliRunner(env={"COLUMNS": "200"}).invoke


def words(result):
    return " ".join(result.output.split())


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDLAB_DATA", raising=False)


def test_certs_shows_what_goes_where():
    result = invoke(app, ["certs", "--host", "lab.example.org", "--client", "usps"])
    assert result.exit_code == 0
    for part in ("ca.key", "new", "lab.example.org", "clients/usps.key", "on the machine of usps, nowhere else"):
        assert part in words(result)
    again = invoke(app, ["certs", "--client", "usps"])
    assert again.exit_code == 1
    assert "certs/clients/usps.pub exists; --if-missing keeps it, --force makes a new key" in words(again)


def test_certs_without_clients_says_that_nobody_may_join():
    assert "no client may join yet: fedlab certs mine --client NAME" in words(invoke(app, ["certs", "mine"]))


def test_certs_takes_clients_as_the_targets_are_written_and_lays_out_machines(tmp_path):
    asked = ["certs", "--client", "usps, @mine", "--client", "optdigits", "--if-missing", "--machines", "machines"]
    for _ in range(2):
        assert invoke(app, asked).exit_code == 0
    keys = {path.stem for path in (tmp_path / "certs" / "clients").glob("*.pub")}
    assert keys == {"usps", "mine", "optdigits"}
    assert {path.name for path in (tmp_path / "machines" / "clients").iterdir()} == keys


def test_ping_says_who_is_there_by_its_words_and_its_status(tmp_path):
    provision.create_credentials(tmp_path / "certs")
    pair = [(tmp_path / "certs" / name).read_bytes() for name in ("server.key", "server.crt")]
    server = grpc.server(ThreadPoolExecutor(1))
    address = f"127.0.0.1:{server.add_secure_port('127.0.0.1:0', grpc.ssl_server_credentials([tuple(pair)]))}"
    server.start()
    try:
        there, plain = invoke(app, ["ping", address]), invoke(app, ["ping", address, "--insecure"])
    finally:
        server.stop(None).wait()
    assert (there.exit_code, words(there)) == (
        0,
        f"the server at {address} is there; its certificate is signed by certs/ca.crt",
    )
    assert (plain.exit_code, "expects TLS" in words(plain)) == (1, True)
    gone = invoke(app, ["ping", address])
    assert (gone.exit_code, words(gone)) == (1, f"error: no server at {address} (Connection refused)")


def test_client_status_says_whether_a_client_is_connected(tmp_path):
    def status():
        result = invoke(app, ["client-status", "usps"])
        return result.exit_code, words(result)

    assert status() == (1, "error: usps is no folder of a client: `fedlab join` makes it (option --state-dir)")
    (tmp_path / "usps").mkdir()
    (tmp_path / "usps" / client.LOCK_FILE).touch()
    assert status() == (1, "error: the client in usps is not connected: it waits for its server, or has left")
    here = tmp_path / "usps" / client.CONNECTED_FILE
    here.touch()
    assert status() == (0, "the client in usps is connected")
    os.utime(here, (time.time() - 100, time.time() - 100))
    assert re.fullmatch(r"error: .* it lost its server, or was killed, 10\d s ago", status()[1])


def test_serve_without_credentials_says_how_to_make_them(tmp_path):
    result = invoke(app, ["serve", "dualadapt-digits", "data.max_examples=20"])
    assert result.exit_code == 1
    assert f"{tmp_path}/certs/ca.crt cannot be read: No such file or directory; `fedlab certs` makes it" in words(
        result
    )
    assert not (tmp_path / "runs").exists()


def test_serve_refuses_an_expired_certificate(tmp_path):
    provision.create_credentials(tmp_path / "certs", clients=["usps"], days=-1)
    result = invoke(app, ["serve", "dualadapt-digits", "data.max_examples=20"])
    assert result.exit_code == 1
    assert "server.crt expired on" in words(result)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["lab"], "'lab' is no HOST:PORT of a server"),
        (["lab:9092"], "which client is this? Give --domain NAME"),
        (["lab:9092", "--domain", "usps", "--data", "none"], "none is neither a folder nor a file (--data)"),
        (["lab:9092", "--domain", "usps", "--data-root", "none"], "none is not a folder (--data-root)"),
    ],
)
def test_join_refuses(arguments, sentence):
    result = invoke(app, ["join", *arguments])
    assert result.exit_code == 1
    assert sentence in words(result)


def test_join_hands_over_what_was_asked_for(tmp_path, monkeypatch):
    provision.create_credentials(tmp_path / "certs", clients=["usps"])
    (tmp_path / "certs" / "clients" / "usps.key").chmod(0o644)
    (tmp_path / "mine").mkdir()
    monkeypatch.setenv("FEDLAB_DATA", str(tmp_path))
    seen = []
    monkeypatch.setattr(client, "join", lambda options, write: seen.append(options))
    result = invoke(app, ["join", "lab:9092", "--data", "mine", "--device", "cuda:1", "--once"])
    assert result.exit_code == 0, result.output
    assert "warning: others can read" in words(result)
    (options,) = seen
    assert options.client == "usps"  # the only key there is
    assert options.node == {
        "domain": "usps",
        "device": "cuda:1",
        "data-root": str(tmp_path),
        "data-folder": str(tmp_path / "mine"),
    }
    assert options.certificates == tmp_path / "certs"
    assert options.state_dir == tmp_path / "clients" / "usps"
    assert options.once
    assert options.give_up_after == float("inf")
