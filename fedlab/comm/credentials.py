"""TLS certificates and client keys of a deployment: reading and checking the files that `fedlab certs` makes.

::

    certs/                  0700, files 0600
        ca.crt  ca.key      the authority that signs the server's certificate; ca.key never leaves this machine
        server.crt  server.key
        clients/
            usps.key        the client's private key, in OpenSSH's format, as flower-supernode reads it
            usps.pub        its public half: `fedlab serve` registers it for the domain `usps`

A client's machine needs two of these, in the same folders: ``ca.crt`` and ``clients/NAME.key``. Clients authenticate by
signing each request (Flower's SuperNode authentication), so their keys are bare keys and never expire.
"""

from __future__ import annotations

import base64
import datetime
from hashlib import sha256
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedlab.errors import ConfigError

CLIENTS = "clients"  # folder of their keys
CLOCK_AHEAD, CLOCK_BEHIND = 5, 305  # seconds by which Flower lets a client's clock differ from its server's
CLOCK_LIMITS = f"it may be {CLOCK_AHEAD} s ahead or {CLOCK_BEHIND} s behind"


def check_server(directory: Path) -> None:
    """Check a server's credentials before anything is started.

    Raises
    ------
    ConfigError
        When the server's files are missing, unreadable, do not belong together, have expired or are not valid yet, do
        not cover the loopback, or when no client has a key.
    """
    renew = f"make a new one: fedlab certs {directory} --force"
    authority, certificate = load_certificate(directory / "ca.crt"), load_certificate(directory / "server.crt")
    key = private_key(directory / "server.key")
    if key.public_key() != certificate.public_key():
        raise ConfigError(f"{directory}/server.key is not the key of {directory}/server.crt; {renew}")
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        raise ConfigError(f"{directory}/server.crt is not signed by {directory}/ca.crt; {renew}") from None
    now = datetime.datetime.now(datetime.UTC)
    for name, found in (("ca.crt", authority), ("server.crt", certificate)):
        remedy = renew if name == "server.crt" else f"delete {directory} and make all again: fedlab certs {directory}"
        if now > found.not_valid_after_utc:
            raise ConfigError(f"{directory}/{name} expired on {found.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; {remedy}")
        if now < found.not_valid_before_utc:
            raise ConfigError(
                f"{directory}/{name} is not valid before {found.not_valid_before_utc:%Y-%m-%d %H:%M} UTC; "
                f"set this machine's clock, or {remedy}"
            )
    missing = {"localhost", "127.0.0.1"} - set(certificate_hosts(certificate))
    if missing:
        raise ConfigError(f"{directory}/server.crt does not cover {' and '.join(sorted(missing))}; {renew}")
    if not public_keys(directory):
        raise ConfigError(f"no client has a key in {directory}/clients: fedlab certs {directory} --client NAME")


def public_keys(directory: Path) -> dict[str, bytes]:
    """Return each client's public key (PEM) by its name, as Flower's Control API registers it.

    Raises
    ------
    ConfigError
        When a file is not a public key of a kind that Flower accepts, or two clients have the same key.
    """
    keys: dict[str, bytes] = {}
    for path in sorted((directory / CLIENTS).glob("*.pub")):
        try:
            key = serialization.load_ssh_public_key(path.read_bytes())
            assert isinstance(key, ec.EllipticCurvePublicKey)
        except (OSError, ValueError, UnsupportedAlgorithm, AssertionError):
            raise ConfigError(f"{path} is no public key of a client (OpenSSH, ecdsa-sha2-nistp256 or -384)") from None
        encoded = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        duplicate = next((name for name, other in keys.items() if other == encoded), None)
        if duplicate is not None:
            raise ConfigError(f"clients {duplicate!r} and {path.stem!r} have the same key in {directory}/clients")
        keys[path.stem] = encoded
    return keys


def sole_client(directory: Path) -> str:
    """Return the name of the only client whose key is here, as on a client's machine; empty for none or several."""
    names = [path.stem for path in (directory / CLIENTS).glob("*.key")]
    return names[0] if len(names) == 1 else ""


def fingerprint(public_key: bytes) -> str:
    """Return OpenSSH's fingerprint (``ssh-keygen -lf NAME.pub``) of a PEM or OpenSSH public key."""
    load = serialization.load_pem_public_key if public_key.startswith(b"-----") else serialization.load_ssh_public_key
    key = load(public_key)
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return _fingerprint(key)


def _fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    line = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return "SHA256:" + base64.b64encode(sha256(base64.b64decode(line.split()[1])).digest()).decode().rstrip("=")


def check_client(directory: Path, name: str) -> str:
    """Check a client's two files; return the fingerprint of its key.

    Raises
    ------
    ConfigError
        When ``ca.crt`` or the key is missing or unreadable, or is something else.
    """
    load_certificate(directory / "ca.crt")
    return _fingerprint(client_key(directory, name).public_key())


def client_key(directory: Path, name: str) -> ec.EllipticCurvePrivateKey:
    """Read a client's private key.

    Raises
    ------
    ConfigError
        When it is missing or is not such a key.
    """
    path = directory / CLIENTS / f"{name}.key"
    try:
        key = serialization.load_ssh_private_key(path.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
    except OSError as error:
        raise ConfigError(
            f"the key of client {name!r} cannot be read: {path}: {error.strerror}; copy it from the server's machine, "
            f"where `fedlab certs --client {name}` makes it"
        ) from None
    except (ValueError, TypeError, UnsupportedAlgorithm, AssertionError):
        raise ConfigError(f"{path} is no key of a client: OpenSSH, ECDSA, without a passphrase") from None
    return key


def is_world_readable(path: Path) -> bool:
    """Return True when others than the owner can read a file."""
    return bool(path.stat().st_mode & 0o077)


def load_certificate(path: Path) -> x509.Certificate:
    """Read one certificate.

    Raises
    ------
    ConfigError
        When it is missing or is something else.
    """
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}; `fedlab certs` makes it on the server's machine"
        ) from None
    except ValueError:
        raise ConfigError(f"{path} is no certificate in PEM format") from None


def certificate_hosts(certificate: x509.Certificate) -> list[str]:
    """Return the host names and addresses that a certificate covers."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]


def private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read the private key of a certificate.

    Raises
    ------
    ConfigError
        When it is missing or is something else.
    """
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; `fedlab certs` makes it") from None
    except (ValueError, TypeError, UnsupportedAlgorithm, AssertionError):
        raise ConfigError(f"{path} is no elliptic curve key in PEM format, without a passphrase") from None
    return key
