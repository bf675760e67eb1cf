"""State directory of a deployed client: the model that predicts for its owner, and the log that `fedlab join` follows.

::

    clients/usps/
        model.pt        config, round, and the states that the strategy's predictor is made of
        events.jsonl    one line for each message that the client answered
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedlab.config.schema import Config
from fedlab.files import write_atomically

MODEL, EVENTS = "model.pt", "events.jsonl"
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
        """Append a line to the log."""
        if self.path is not None:
            self.path.mkdir(parents=True, exist_ok=True)
            with (self.path / EVENTS).open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"time": round(time.time(), 3), "event": event, **fields}) + "\n")

    def save(
        self, states: Mapping[str, Mapping[str, Tensor]], config: Config, client: str, facts: Mapping[str, object]
    ) -> None:
        """Replace the saved model atomically and log it as ``saved``.

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
        write_atomically(self.path / MODEL, stream.getvalue())
        self.log_event("saved", **facts)
