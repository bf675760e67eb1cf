"""Consent of a deployed client's owner: in which runs it takes part, by default those like its first one.

``consent.json`` in the state directory keeps what the first run asked. The owner's options of ``fedlab join``
(``--allow``, ``--allow-upload``, ``--max-rounds``) go over it, each for itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fedlab.config.schema import Config
from fedlab.errors import ConfigError, name_list
from fedlab.files import write_atomically

CONSENT = "consent.json"
ALLOW_KEY, UPLOAD_KEY, ROUNDS_KEY = "allow", "allow-upload", "max-rounds"  # in the node's config
UPLOADS = ("nothing", "head", "model")  # what leaves a client in training, from little to all


@dataclass(frozen=True)
class Request:
    """Request of a run to a client: a strategy, its upload and its rounds.

    Attributes
    ----------
    strategy, rounds
        Of the run.
    upload
        What its clients send: one of ``UPLOADS``.
    """

    strategy: str
    upload: str
    rounds: int

    @classmethod
    def of(cls, config: Config) -> Request:
        """Return what a configured run asks."""
        return cls(config.run.strategy, config.plugins["strategy"].spec.upload, config.run.rounds)


@dataclass(frozen=True)
class Consent:
    """Limits that a client's owner sets; an empty list, an empty text and 0 allow anything."""

    strategies: tuple[str, ...] = ()
    upload: str = ""
    rounds: int = 0

    def check(self, request: Request) -> None:
        """Refuse what is not allowed.

        Raises
        ------
        ConfigError
            With what the run asks, what the client allows, and the option that would allow it.
        """
        if self.strategies and request.strategy not in self.strategies:
            raise ConfigError(
                f"the run asks this client to take part in strategy {request.strategy!r}, and its owner allows "
                f"{name_list(self.strategies)}; `fedlab join --allow {request.strategy}` would allow it"
            )
        if self.upload and UPLOADS.index(request.upload) > UPLOADS.index(self.upload):
            raise ConfigError(
                f"strategy {request.strategy!r} sends the client's {request.upload}, and its owner allows to send "
                f"{self.upload}; `fedlab join --allow-upload {request.upload}` would allow it"
            )
        if self.rounds and request.rounds > self.rounds:
            raise ConfigError(
                f"the run has {request.rounds} rounds, and this client's owner allows {self.rounds}; "
                f"`fedlab join --max-rounds {request.rounds}` would allow them"
            )


def check_consent(state_dir: Path | None, node_config: Mapping[str, Any], request: Request) -> None:
    """Refuse what the owner of a client has not allowed; keep what its first run asks for.

    Parameters
    ----------
    state_dir
        Of the client; without one, as on the machine of a simulation, everything is allowed that the node's settings
        do not restrict.

    Raises
    ------
    ConfigError
        See :meth:`Consent.check`.
    """
    path = state_dir / CONSENT if state_dir is not None else None
    found = Consent()
    if path is not None and path.exists():
        first = Request(**json.loads(path.read_text(encoding="utf-8")))
        found = Consent((first.strategy,), first.upload, first.rounds)
    if allowed := str(node_config.get(ALLOW_KEY, "")):
        found = replace(found, strategies=tuple(name.strip() for name in allowed.split(",") if name.strip()))
    if upload := str(node_config.get(UPLOAD_KEY, "")):
        found = replace(found, upload=upload)
    if rounds := int(node_config.get(ROUNDS_KEY, 0)):
        found = replace(found, rounds=rounds)
    found.check(request)
    if path is not None and not path.exists():
        write_atomically(path, json.dumps(asdict(request), indent=2).encode() + b"\n")
        path.chmod(0o600)


def run_key(config: Config) -> str:
    """Return a name of a run that two runs of other options do not share; its rounds may be more when it goes on."""
    same = replace(config, run=replace(config.run, rounds=1, device="auto", threads=0))
    return f"{config.run.name or 'run'}-{hashlib.sha256(same.to_toml().encode()).hexdigest()[:12]}"


def config_digest(config: Config) -> str:
    """Return the SHA-256 of every option as this version understands it, for server and client to compare."""
    return hashlib.sha256(config.to_toml().encode()).hexdigest()
