"""What a client's owner wants to know of its SuperNode: two logs read, a few plain lines said."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedlab.engines.processes import uncoloured

if TYPE_CHECKING:
    from fedlab.deploy.client import Joining

REFUSED = "fedlab: refused: "  # our ClientApp's line
HICCUP = 4.0  # seconds without the server that are not worth a line
DONE = {"train": "trained", "evaluate": "tested"}


class Tail:
    """The complete new lines of a file that others append to."""

    def __init__(self, path: Path, *, from_end: bool = False) -> None:
        self.path = path
        self.at = path.stat().st_size if from_end and path.exists() else 0

    def lines(self) -> list[str]:
        """Lines since the last call; one that is not complete yet comes the next time."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as stream:
            stream.seek(self.at)
            text = stream.read()
        complete = text[: text.rfind(b"\n") + 1]
        self.at += len(complete)
        return uncoloured(complete.decode(errors="replace")).splitlines()


class News:
    """What one SuperNode is up to.

    Attributes
    ----------
    connected
        Whether the server has let it in.
    node
        Its number there; 0 before it was let in.
    turned_away, unproven
        Whether the server did not; whether because of its signature.
    restarted
        Whether its server was started anew and does not know it any more.
    refused
        Why the run's server, or our own ClientApp, will have nothing to do with this client.
    lost
        Since when (monotonic) the server does not answer; 0 while it does.
    busy
        Whether a message waits for its reply.
    finished
        Whether the last round of a run was tested.
    """

    def __init__(self, options: Joining, say: Callable[[str], None]) -> None:
        self.options, self.say = options, say
        self.connected = self.turned_away = self.unproven = self.restarted = self.finished = False
        self.refused, self.lost, self.node = "", 0.0, 0
        self._open = 0
        self._told_lost = False
        self._run = ""

    @property
    def busy(self) -> bool:
        """Whether a message waits for its reply."""
        return self._open > 0

    def of_supernode(self, lines: Iterable[str]) -> None:
        """Take in what Flower printed."""
        for line in lines:
            if found := re.search(r"SuperNode ID: (\d+)", line):
                self.connected, self.node = True, int(found[1])
                self.say(f"connected to {self.options.address} as {self.options.client}")
            elif "Connection attempt failed" in line:
                self.lost = self.lost or time.monotonic()
            elif "Connection successful" in line:
                self._back()
            elif "Failed to activate SuperNode" in line or "SuperNode registration is disabled" in line:
                self.turned_away = True
            elif "SuperNode terminated gracefully" in line:  # not by us: the server did not accept what it signed
                self.restarted, self.turned_away = self.connected, not self.connected
                self.unproven = not self.connected
                if self.restarted:
                    self.say("the server was started anew; connecting again")
            elif "Receiving:" in line:
                self._open += 1
            elif re.search("Sent successfully|Failed to (send|receive) message|Ignoring (reply )?message", line):
                self._open = 0
            elif REFUSED in line:
                self.refused = line.split(REFUSED, 1)[1]
        if self.lost and not self._told_lost and time.monotonic() - self.lost > HICCUP:
            self._told_lost = True
            self.say(f"the server at {self.options.address} went away; trying until it is back")

    def of_client(self, lines: Iterable[str]) -> None:
        """Take in what our ClientApp noted."""
        for line in lines:
            with suppress(ValueError, KeyError, TypeError):
                self._event(json.loads(line))

    def _event(self, event: dict[str, Any]) -> None:
        kind, status = event["event"], event.get("status")
        if kind == "query" and status == "ok" and event.get("name") != self._run:
            self._run = event["name"]
            self.say(f"taking part in {self._run}")
        elif kind == "refused":
            self.say(f"round {event['round']}: the server refused this update: {event['reason']}")
        elif kind in DONE:
            where = f"round {event['round']}" + (f" of {event['rounds']}" if "rounds" in event else "")
            if status == "ok":
                self.say(f"{where}: {DONE[kind]}, {event['seconds']:.1f} s")
            else:
                reason = str(event.get("reason", "no reason given")).strip().splitlines()[-1]
                self.say(f"{where}: failed to {kind}: {reason}")
            self.finished = kind == "evaluate" and status == "ok" and event["round"] == event["rounds"]
        elif kind == "kept" and event["round"] == event["rounds"]:
            keep = self.options.keep
            with suppress(ValueError):
                keep = keep.relative_to(Path.cwd())
            how = f"; predict with: fedlab predict {keep} IMAGES..." if event.get("images") else ""
            self.say(f"the model is in {keep}{how}")

    def _back(self) -> None:
        if self._told_lost:
            self.say("the server is back")
        self.lost, self._told_lost = 0.0, False
