"""What a deployed client keeps on its own machine: the model that predicts for its owner, and a log for `fedlab join`.

::

    clients/usps/
        model.pt        knobs, round, and the states that the strategy's predictor is made of
        events.jsonl    one line for each message that the client answered
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedlab.config.schema import Flat
from fedlab.files import write_atomically

MODEL, EVENTS = "model.pt", "events.jsonl"
KEY = "keep"  # in the node's config


class Keep:
    """A client's directory; without one, nothing is kept."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    @classmethod
    def of(cls, node_config: Mapping[str, Any]) -> Keep:
        """The directory that a node was started with."""
        folder = str(node_config.get(KEY, ""))
        return cls(Path(folder) if folder else None)

    def __bool__(self) -> bool:
        """Whether there is one."""
        return self.path is not None

    def tell(self, event: str, **fields: object) -> None:
        """Append a line to the log."""
        if self.path is not None:
            self.path.mkdir(parents=True, exist_ok=True)
            with (self.path / EVENTS).open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"time": round(time.time(), 3), "event": event, **fields}) + "\n")

    def save(
        self, states: Mapping[str, Mapping[str, Tensor]], config: Flat, client: str, fact: Mapping[str, object]
    ) -> None:
        """Replace the model; a reader, or a kill, sees the old one or the new one."""
        if self.path is None:
            return
        content = {
            "config": dict(config),
            "round": fact["round"],
            "client": client,
            "states": {name: {key: tensor.cpu() for key, tensor in state.items()} for name, state in states.items()},
        }
        stream = io.BytesIO()
        torch.save(content, stream)
        write_atomically(self.path / MODEL, stream.getvalue())
        self.tell("kept", **fact)
