"""Making credentials: who can read them, what is kept, what is refused."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from fedlab.comm import credentials
from fedlab.deploy import provision
from fedlab.errors import ConfigError


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_only_the_owner_reads_what_was_made(tmp_path):
    folder = tmp_path / "certs"
    made = provision.create_credentials(folder, hosts=["lab.example.org", "10.0.0.1"], clients=["usps", "mine"])
    assert {str(file.path.relative_to(folder)) for file in made} == set(contents(folder))
    assert all(file.new for file in made)
    assert all(path.stat().st_mode & 0o077 == 0 for path in [folder, *folder.rglob("*")])
    hosts = credentials.certificate_hosts(credentials.load_certificate(folder / "server.crt"))
    assert set(hosts) == {"localhost", "127.0.0.1", "::1", "lab.example.org", "10.0.0.1"}
    credentials.check_server(folder)


def test_a_client_is_added_later_and_all_else_is_kept(tmp_path):
    provision.create_credentials(tmp_path, clients=["usps"])
    before = contents(tmp_path)
    made = provision.create_credentials(tmp_path, clients=["mine"])
    assert {file.path.name for file in made if file.new} == {"mine.key", "mine.pub"}
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before
    assert set(credentials.public_keys(tmp_path)) == {"usps", "mine"}


def test_nothing_is_overwritten_without_force(tmp_path):
    provision.create_credentials(tmp_path, hosts=["one.example.org"], clients=["usps"])
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=r"usps.pub exists; --if-missing keeps it, --force makes a new key"):
        provision.create_credentials(tmp_path, clients=["usps"])
    with pytest.raises(ConfigError, match=r"server.crt exists; --force makes it anew"):
        provision.create_credentials(tmp_path, hosts=["two.example.org"])
    assert contents(tmp_path) == before
    provision.create_credentials(tmp_path, hosts=["two.example.org"], force=True)
    after = contents(tmp_path)
    assert {name for name in before if before[name] != after[name]} == {"server.crt", "server.key"}
    assert {"one.example.org", "two.example.org"} <= set(
        credentials.certificate_hosts(credentials.load_certificate(tmp_path / "server.crt"))
    )
    credentials.check_server(tmp_path)


def test_what_is_missing_is_made_as_often_as_it_is_asked_for(tmp_path, monkeypatch):
    asked = {"hosts": ["one.example.org", "::1"], "clients": ["usps"], "if_missing": True}
    provision.create_credentials(tmp_path, **asked)
    before = contents(tmp_path)
    assert not any(file.new for file in provision.create_credentials(tmp_path, **asked))
    assert contents(tmp_path) == before
    made = provision.create_credentials(tmp_path, hosts=["two.example.org"], clients=["usps", "mine"], if_missing=True)
    new = {file.path.name for file in made if file.new}
    assert new == {"server.crt", "server.key", "mine.key", "mine.pub"}
    assert {"one.example.org", "two.example.org"} <= set(
        credentials.certificate_hosts(credentials.load_certificate(tmp_path / "server.crt"))
    )
    provision.create_credentials(tmp_path, days=-1, force=True)
    assert {file.path.name for file in provision.create_credentials(tmp_path, **asked) if file.new} == {
        "server.crt",
        "server.key",
    }
    credentials.check_server(tmp_path)


def test_each_machine_gets_what_it_needs_and_nothing_else(tmp_path):
    source, machines = tmp_path / "certs", tmp_path / "machines"
    provision.create_credentials(source, clients=["usps", "mine"])
    provision.export_per_machine(source, machines)
    public = {f"server/clients/{name}.pub" for name in ("usps", "mine")}
    clients = {f"clients/{name}/{file}" for name in ("usps", "mine") for file in ("ca.crt", f"clients/{name}.key")}
    assert set(contents(machines)) == {"server/ca.crt", "server/server.crt", "server/server.key"} | public | clients
    assert all(path.stat().st_mode & 0o077 == 0 for path in machines.rglob("*"))
    credentials.check_server(machines / "server")
    assert credentials.check_client(machines / "clients" / "usps", "usps") == credentials.check_client(source, "usps")
    (source / "clients" / "usps.pub").unlink()  # shut out
    (source / "clients" / "mine.key").unlink()  # copied to its machine
    provision.export_per_machine(source, machines)
    assert set(credentials.public_keys(machines / "server")) == {"mine"}
    assert clients <= set(contents(machines))


def test_machines_that_cannot_be_laid_out_are_a_sentence(tmp_path):
    provision.create_credentials(tmp_path / "certs")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="no credentials can be written to .*file"):
        provision.export_per_machine(tmp_path / "certs", tmp_path / "file")


def test_a_lost_authority_is_not_made_anew_behind_the_clients_backs(tmp_path):
    provision.create_credentials(tmp_path, clients=["usps"])
    (tmp_path / "ca.crt").unlink()
    with pytest.raises(ConfigError, match=r"ca.crt is missing, but what it stands for is there"):
        provision.create_credentials(tmp_path)


@pytest.mark.parametrize("name", ["../usps", "", "a b", ".hidden", "-x"])
def test_a_name_that_is_no_file_name_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="is no name for a client"):
        provision.create_credentials(tmp_path / "certs", clients=[name])
    assert not (tmp_path / "certs").exists()


@pytest.mark.parametrize("host", ["lab:9092", "a b", "http://lab"])
def test_what_is_no_host_is_refused_before_anything_is_made(tmp_path, host):
    with pytest.raises(ConfigError, match="is neither a host name nor an address"):
        provision.create_credentials(tmp_path / "certs", hosts=[host])
    assert not (tmp_path / "certs").exists()


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="no credentials can be written to"):
        provision.create_credentials(tmp_path / "file" / "certs")


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs OpenSSH")
def test_openssh_reads_the_keys_and_names_them_alike(tmp_path):
    provision.create_credentials(tmp_path, clients=["usps"])
    told = subprocess.run(
        ["ssh-keygen", "-lf", str(tmp_path / "clients" / "usps.pub")], capture_output=True, text=True, check=True
    ).stdout
    assert credentials.fingerprint(credentials.public_keys(tmp_path)["usps"]) in told
