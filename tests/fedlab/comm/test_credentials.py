"""Credentials that are checked before anything is started: each fault is a sentence that says what to do."""

from __future__ import annotations

import datetime
import shutil

import pytest

from fedlab.comm import credentials
from fedlab.deploy import provision
from fedlab.errors import ConfigError


@pytest.fixture
def folder(tmp_path):
    provision.create_credentials(tmp_path / "certs", clients=["usps"])
    return tmp_path / "certs"


@pytest.fixture
def other(tmp_path):
    provision.create_credentials(tmp_path / "other", clients=["usps"])
    return tmp_path / "other"


def test_what_was_made_passes(folder):
    credentials.check_server(folder)
    assert credentials.check_client(folder, "usps").startswith("SHA256:")
    assert credentials.check_client(folder, "usps") == credentials.fingerprint(credentials.public_keys(folder)["usps"])


@pytest.mark.parametrize("name", ["ca.crt", "server.crt", "server.key"])
def test_a_missing_or_broken_file_of_the_server(folder, name):
    (folder / name).write_text("nonsense")
    with pytest.raises(ConfigError, match=f"{name} is no "):
        credentials.check_server(folder)
    (folder / name).unlink()
    with pytest.raises(ConfigError, match=f"{name} cannot be read: No such file"):
        credentials.check_server(folder)


def test_files_of_two_makings_do_not_belong_together(folder, other):
    shutil.copy(other / "server.key", folder)
    with pytest.raises(ConfigError, match=r"server.key is not the key of .*fedlab certs .* --force"):
        credentials.check_server(folder)
    shutil.copy(other / "server.crt", folder)
    with pytest.raises(ConfigError, match=r"server.crt is not signed by"):
        credentials.check_server(folder)


def test_out_of_date(folder, monkeypatch):
    provision.create_credentials(folder, days=-1, force=True)
    with pytest.raises(ConfigError, match=r"server.crt expired on \d{4}-.* UTC; make a new one"):
        credentials.check_server(folder)
    with monkeypatch.context() as patch:
        patch.setattr(provision, "CLOCK_SKEW", datetime.timedelta(hours=-2))
        provision.create_credentials(folder, force=True)
    with pytest.raises(ConfigError, match=r"server.crt is not valid before .*set this machine's clock"):
        credentials.check_server(folder)


def test_a_certificate_without_the_loopback(folder, monkeypatch):
    monkeypatch.setattr(provision, "LOCAL", ())
    (folder / "server.crt").unlink()
    provision.create_credentials(folder, hosts=["lab.example.org"])
    with pytest.raises(ConfigError, match=r"does not cover 127.0.0.1 and localhost"):
        credentials.check_server(folder)


def test_a_server_without_clients(tmp_path):
    provision.create_credentials(tmp_path)
    with pytest.raises(ConfigError, match=r"no client has a key in .*: fedlab certs .* --client NAME"):
        credentials.check_server(tmp_path)


def test_public_keys_that_are_none_or_the_same(folder):
    shutil.copy(folder / "clients" / "usps.pub", folder / "clients" / "twin.pub")
    with pytest.raises(ConfigError, match="clients 'twin' and 'usps' have the same key"):
        credentials.public_keys(folder)
    (folder / "clients" / "twin.pub").write_text("ssh-ed25519 nonsense")
    with pytest.raises(ConfigError, match=r"twin.pub is no public key of a client"):
        credentials.public_keys(folder)


def test_a_client_without_its_key(folder):
    with pytest.raises(ConfigError, match=r"the key of client 'mine' cannot be read.*`fedlab certs --client mine`"):
        credentials.check_client(folder, "mine")
    (folder / "clients" / "mine.key").write_text("nonsense")
    with pytest.raises(ConfigError, match=r"mine.key is no key of a client"):
        credentials.check_client(folder, "mine")


def test_the_sole_client_and_a_key_that_others_read(folder):
    assert credentials.sole_client(folder) == "usps"
    key = folder / "clients" / "usps.key"
    assert not credentials.is_world_readable(key)
    key.chmod(0o640)
    assert credentials.is_world_readable(key)
    provision.create_credentials(folder, clients=["mine"])
    assert credentials.sole_client(folder) == ""
