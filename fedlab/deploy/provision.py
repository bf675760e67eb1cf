"""Creation of a deployment's credentials: an authority, the server's certificate, a key for each client.

:mod:`fedlab.comm.credentials` describes the files and which machine needs which.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedlab.comm.credentials import CLIENTS, certificate_hosts, load_certificate, private_key
from fedlab.errors import ConfigError
from fedlab.files import expand_user

LOCAL = ("localhost", "127.0.0.1", "::1")  # always covered: the server's own processes use the loopback
CA_DAYS = 3650
CLOCK_SKEW = datetime.timedelta(hours=1)  # a client whose clock is a little behind still accepts a new certificate
NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class CredentialFile:
    """One file of credentials, a description, and the machine that it belongs to."""

    path: Path
    what: str
    place: str
    new: bool = True


def create_credentials(
    directory: Path,
    *,
    hosts: Iterable[str] = (),
    clients: Iterable[str] = (),
    days: float = 365,
    force: bool = False,
    if_missing: bool = False,
) -> list[CredentialFile]:
    """Create the missing files in a folder of credentials; return all files that are in it then.

    The authority is created once. ``force`` creates the server's certificate again, for the hosts it had and those in
    ``hosts``, and the keys of ``clients``; to change the authority, delete the folder. With ``if_missing`` the call is
    idempotent: existing keys stay, and so does the certificate unless it lacks one of the hosts or has expired.

    Raises
    ------
    ConfigError
        When something that was asked for exists already, a name is not usable, or the folder cannot be written.
    """
    directory, hosts, clients = expand_user(directory), tuple(hosts), tuple(dict.fromkeys(clients))
    for name in clients:
        if not NAME.fullmatch(name):
            raise ConfigError(f"{name!r} is no name for a client: letters, digits, '.', '_' and '-', a domain's name")
        if not force and not if_missing and (public := directory / CLIENTS / f"{name}.pub").exists():
            raise ConfigError(
                f"{public} exists; --if-missing keeps it, --force makes a new key, after which the old one is refused"
            )
    for host in hosts:
        _general_name(host)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        (directory / CLIENTS).mkdir(mode=0o700, exist_ok=True)
        fresh = _authority(directory)
        fresh |= _server(directory, hosts, days, force, if_missing)
        for name in clients:
            if force or not (directory / CLIENTS / f"{name}.pub").exists():
                fresh |= _client(directory / CLIENTS, name)
    except OSError as error:
        raise ConfigError(f"no credentials can be written to {directory}: {error.strerror or error}") from None
    return _inventory(directory, fresh)


def export_per_machine(directory: Path, machines: Path) -> None:
    """Copy the files that each machine needs to a folder for it: ``server`` and ``clients/NAME``.

    Each of them is then a folder of credentials for `fedlab serve` or `fedlab join`. Public keys that were deleted from
    ``directory`` are deleted from ``server`` too. Where a client's private key was deleted, its folder is not changed.

    Raises
    ------
    ConfigError
        When a folder cannot be written.
    """
    directory, machines = expand_user(directory), expand_user(machines)
    names = sorted(path.stem for path in (directory / CLIENTS).glob("*.pub"))
    server = machines / "server"
    files = {server: ["ca.crt", "server.crt", "server.key", *(f"{CLIENTS}/{name}.pub" for name in names)]}
    for name in names:
        if (directory / CLIENTS / f"{name}.key").exists():
            files[machines / CLIENTS / name] = ["ca.crt", f"{CLIENTS}/{name}.key"]
    try:
        for folder, needed in files.items():
            for part in (machines, machines / CLIENTS, folder, folder / CLIENTS):
                part.mkdir(mode=0o700, parents=True, exist_ok=True)
            for file in needed:
                _write(folder / file, (directory / file).read_bytes())
        for public in (server / CLIENTS).glob("*.pub"):
            if public.stem not in names:
                public.unlink()
    except OSError as error:
        raise ConfigError(f"no credentials can be written to {machines}: {error.strerror or error}") from None


def _authority(directory: Path) -> set[Path]:
    certificate, key_path = directory / "ca.crt", directory / "ca.key"
    if certificate.exists():
        return set()
    if any((directory / CLIENTS).glob("*.key")) or (directory / "server.crt").exists():
        raise ConfigError(f"{certificate} is missing, but what it stands for is there; put it back, or delete all")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedlab certificate authority")])
    builder = (
        _builder(name, name, key.public_key(), CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
    )
    _write(key_path, _pem(key))
    _write(certificate, builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    return {certificate, key_path}


def _server(directory: Path, hosts: tuple[str, ...], days: float, force: bool, if_missing: bool) -> set[Path]:
    certificate, key_path = directory / "server.crt", directory / "server.key"
    before: list[str] = []
    if certificate.exists():
        current = load_certificate(certificate)
        before = certificate_hosts(current)
        expired = datetime.datetime.now(datetime.UTC) > current.not_valid_after_utc
        lacking = expired or {str(_general_name(host).value) for host in hosts} - set(before)
        if not force and hosts and not if_missing:
            raise ConfigError(f"{certificate} exists; --force makes it anew, for the hosts it has and {hosts[0]!r}")
        if not force and not (if_missing and lacking):
            return set()
    authority_key, authority = private_key(directory / "ca.key"), load_certificate(directory / "ca.crt")
    key = ec.generate_private_key(ec.SECP256R1())
    names = [_general_name(host) for host in dict.fromkeys((*LOCAL, *before, *hosts))]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedlab server")])
    issuer = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        _builder(subject, authority.subject, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer), critical=False)
    )
    _write(key_path, _pem(key))
    _write(certificate, builder.sign(authority_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    return {certificate, key_path}


def _client(folder: Path, name: str) -> set[Path]:
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    key = ec.generate_private_key(ec.SECP256R1())
    openssh = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    _write(private, _pem(key, serialization.PrivateFormat.OpenSSH))
    _write(public, openssh + f" {name}\n".encode())
    return {private, public}


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: float
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    end = now + datetime.timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, end) - CLOCK_SKEW)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not re.fullmatch(r"(\*\.)?[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*", host):
        raise ConfigError(f"{host!r} is neither a host name nor an address; give it without a port")
    return x509.DNSName(host)


def _pem(
    key: ec.EllipticCurvePrivateKey, kind: serialization.PrivateFormat = serialization.PrivateFormat.PKCS8
) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption())


def _write(path: Path, content: bytes) -> None:
    """Write a file atomically that only its owner can ever read."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(content)
    temporary.replace(path)


def _inventory(directory: Path, fresh: set[Path]) -> list[CredentialFile]:
    server = load_certificate(directory / "server.crt")
    until = f"until {server.not_valid_after_utc:%Y-%m-%d}"
    rows = [
        (directory / "ca.crt", "the authority's certificate", "here, and on every client's machine"),
        (directory / "ca.key", "the authority's key", "here or in a safe; no other machine needs it"),
        (
            directory / "server.crt",
            f"the server's certificate for {', '.join(certificate_hosts(server))}; {until}",
            "here",
        ),
        (directory / "server.key", "its key", "here"),
    ]
    for public in sorted((directory / CLIENTS).glob("*.pub")):
        private = public.with_suffix(".key")
        rows += [
            (private, f"key of client {public.stem}", f"on the machine of {public.stem}, nowhere else"),
            (public, "its public half", "here"),
        ]
    return [CredentialFile(path, what, place, path in fresh) for path, what, place in rows if path.exists()]
