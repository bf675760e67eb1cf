"""State directory of a deployed client: the model that predicts for its owner, and the log that `fedlab join` follows.

::

    clients/usps/
        model.pt        config, round, and the states that the strategy's predictor is made of
        models/         models of runs before, one file each: a run replaces its own model only
        events.jsonl    lines for each message that the client answered, among them which data it trains on
        audit.jsonl     who asked, for what, and what was sent: lines are only ever added
        consent.json    see :mod:`fedlab.runs.consent`
        privacy.json    see :mod:`fedlab.runs.privacy_ledger`
        client-state/   see :mod:`fedlab.runs.client_state`
"""

from __future__ import annotations

import io
import json
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedlab.config.schema import Config
from fedlab.errors import FedlabWarning, RunError, os_error_sentence
from fedlab.files import append_line, write_atomically
from fedlab.runs.consent import run_key

MODEL, EVENTS, AUDIT = "model.pt", "events.jsonl", "audit.jsonl"
MODELS, MODEL_RUN = "models", ".model-run"  # models of other runs; the run of the model that is kept
STATE_DIR_KEY = "state-dir"  # in the node's config

if TYPE_CHECKING:
    from torch import Tensor


class ClientStore:
    """Writer of a client's state directory; without a path, nothing is written.

    A store is true when it has a path.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path

    @classmethod
    def from_node_config(cls, node_config: Mapping[str, Any]) -> ClientStore:
        """Return the store of the state directory that a node was started with."""
        folder = str(node_config.get(STATE_DIR_KEY, ""))
        return cls(Path(folder) if folder else None)

    def __bool__(self) -> bool:
        """Return True when there is a state directory."""
        return self.path is not None

    def log_event(self, event: str, **fields: object) -> None:
        """Append a line to the log; a disk that takes it not costs the line and not the client's work."""
        record = {"time": round(time.time(), 3), "event": event, **fields}
        try:
            self._append(EVENTS, record)
        except OSError as error:
            print(f"{os_error_sentence(error)}; not logged: {json.dumps(record)}", file=sys.stderr, flush=True)

    def audit(self, event: str, **fields: object) -> None:
        """Append a line to the audit log, with the version that answers, before anything is sent.

        Raises
        ------
        RunError
            When the line cannot be written: then nothing is to be sent.
        """
        when = datetime.now(UTC).isoformat(timespec="milliseconds")
        try:
            self._append(AUDIT, {"time": when, "event": event, "version": version("fedlab-adapt"), **fields})
        except OSError as error:
            raise RunError(f"nothing is sent that is not in the audit log: {os_error_sentence(error)}") from None

    def _append(self, name: str, record: Mapping[str, object]) -> None:
        if self.path is not None:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            append_line(self.path / name, json.dumps(record))

    @contextmanager
    def log_warnings(self) -> Iterator[None]:
        """Log warnings for users that come up in the body, each as ``warning``; show all as usual, too."""
        if self.path is None:
            yield
            return
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always", FedlabWarning)
            yield
        for one in found:
            if issubclass(one.category, FedlabWarning):
                self.log_event("warning", text=str(one.message))
            warnings.showwarning(one.message, one.category, one.filename, one.lineno)

    def save(
        self, states: Mapping[str, Mapping[str, Tensor]], config: Config, client: str, facts: Mapping[str, object]
    ) -> None:
        """Replace the saved model atomically and log it as ``saved``, or as a warning where it cannot be written.

        Parameters
        ----------
        states
            State dicts by name, as the strategy's predictor takes them.
        client
            Name of the client's partition.
        facts
            Fields of the logged event, among them ``round``.
        """
        if self.path is None:
            return
        import torch  # here, because `fedlab join` imports this module for its names and needs no torch

        content = {
            "config": config.to_toml(),
            "round": facts["round"],
            "client": client,
            "states": {name: {key: tensor.cpu() for key, tensor in state.items()} for name, state in states.items()},
        }
        stream = io.BytesIO()
        torch.save(content, stream)
        try:
            self._put_aside(run_key(config))
            write_atomically(self.path / MODEL, stream.getvalue())
            (self.path / MODEL).chmod(0o600)
        except OSError as error:  # the round does not need it
            self.log_event("warning", text=f"the model was not saved: {os_error_sentence(error)}")
            return
        self.log_event("saved", **facts)

    def _put_aside(self, run: str) -> None:
        """Move the model of another run to ``models/``, and note whose the next one is."""
        assert self.path is not None
        owner = self.path / MODEL_RUN
        before = owner.read_text(encoding="utf-8").strip() if owner.exists() else "earlier"
        if before != run and (self.path / MODEL).exists():
            (self.path / MODELS).mkdir(mode=0o700, exist_ok=True)
            (self.path / MODEL).replace(self.path / MODELS / f"{before}.pt")
        if before != run:
            write_atomically(owner, run.encode() + b"\n")
