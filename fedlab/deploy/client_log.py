"""Monitor of a SuperNode: reads its log and our ClientApp's, and reports the important lines to the client's owner."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedlab.comm.foreign_text import REFUSED
from fedlab.data.sources import DataSource, data_line
from fedlab.engines.processes import strip_ansi

NOTICE_AFTER = 4.0  # seconds without the server after which its loss is reported
# Flower's log lines; tests/fedlab/engines/test_flower_internals.py looks for them in its sources.
ACCEPTED = "SuperNode ID: "
CONNECTION_LOST, CONNECTION_BACK = "Connection attempt failed", "Connection successful"
NOT_ACCEPTED = ("Failed to activate SuperNode", "All SuperNodes must be registered via the CLI")
STOPPED = "SuperNode terminated gracefully"
RECEIVING = "Receiving: "
ANSWERED = (
    "Sent successfully",
    "Failed to send message",
    "Failed to receive message",
    "Ignoring message",
    "Ignoring reply message",
)
VERBS = {"train": "trained", "evaluate": "tested"}


class SuperNodeMonitor:
    """State of one SuperNode, as its logs show it.

    Parameters
    ----------
    address, client, state_dir
        Server, name and state directory of the client.
    write
        Called with each line for the client's owner.

    Attributes
    ----------
    connected
        True once the server has accepted the node.
    node
        Node id at the server; 0 before it was accepted.
    rejected, bad_signature
        True when the server did not accept the node; True when because of its signature.
    restarted
        True when its server was restarted and does not know the node any more.
    refused
        Reason why the run's server, or our own ClientApp, does not let this client take part; empty without one.
    lost
        time.monotonic() since when the server does not answer; 0 while it does.
    busy
        True while a message waits for its reply.
    finished
        True once the last round of a run was evaluated.
    """

    def __init__(self, address: str, client: str, state_dir: Path, write: Callable[[str], None]) -> None:
        self.address, self.client, self.state_dir, self.write = address, client, state_dir, write
        self.connected = self.rejected = self.bad_signature = self.restarted = self.finished = False
        self.refused, self.lost, self.node = "", 0.0, 0
        self._open = 0
        self._loss_reported = False
        self._run, self._data = "", dict[str, Any]()
        self._warned: set[str] = set()

    @property
    def busy(self) -> bool:
        """True while a message waits for its reply."""
        return self._open > 0

    def read_supernode_log(self, lines: Iterable[str]) -> None:
        """Update from lines that Flower printed."""
        for line in map(strip_ansi, lines):
            if found := re.search(rf"{ACCEPTED}(\d+)", line):
                self.connected, self.node = True, int(found[1])
                self.write(f"connected to {self.address} as {self.client}")
            elif CONNECTION_LOST in line:
                self.lost = self.lost or time.monotonic()
            elif CONNECTION_BACK in line:
                self._reconnected()
            elif any(text in line for text in NOT_ACCEPTED):
                self.rejected = True
            elif STOPPED in line:  # not stopped by us: its signature was not accepted
                self.restarted, self.rejected = self.connected, not self.connected
                self.bad_signature = not self.connected
                if self.restarted:
                    self.write("the server was started anew; connecting again")
            elif RECEIVING in line:
                self._open += 1
            elif any(text in line for text in ANSWERED):
                self._open = max(0, self._open - 1)  # the next message may have come before this line was written
            elif REFUSED in line:
                self.refused = line.split(REFUSED, 1)[1]
        if self.lost and not self._loss_reported and time.monotonic() - self.lost > NOTICE_AFTER:
            self._loss_reported = True
            if self.finished:  # nothing is wrong: a server ends with its run
                self.write(
                    f"{self._run or 'the run'} is over; waiting at {self.address} for the next one, until Ctrl-C"
                )
            else:
                self.write(f"the server at {self.address} went away; trying until it is back")

    def read_client_events(self, lines: Iterable[str]) -> None:
        """Update from JSON lines that our ClientApp logged."""
        for line in lines:
            with suppress(ValueError, KeyError, TypeError):
                self._event(json.loads(line))

    def _event(self, event: dict[str, Any]) -> None:
        kind, status = event["event"], event.get("status")
        event.pop("time", None)
        if kind == "query" and status == "ok" and event.get("name") != self._run:
            self._run = event["name"]
            self.write(f"taking part in {self._run}")
        elif kind == "data" and event != self._data:  # each training tells it anew
            self._data = event
            self.write(data_line([DataSource(**source) for source in event["sources"]]))
        elif kind == "warning" and event["text"] not in self._warned:  # each message is a process, which warns anew
            self._warned.add(event["text"])
            self.write(f"warning: {event['text']}")
        elif kind == "refused":
            self.write(f"round {event['round']}: the server refused this update: {event['reason']}")
        elif kind in VERBS:
            where = f"round {event['round']}" + (f" of {event['rounds']}" if "rounds" in event else "")
            if status == "ok":
                self.write(f"{where}: {VERBS[kind]}, {event['seconds']:.1f} s{_privacy(event)}")
            else:
                reason = str(event.get("reason", "no reason given")).strip().splitlines()[-1]
                self.write(f"{where}: failed to {kind}: {reason}")
            self.finished = kind == "evaluate" and status == "ok" and event["last"]
        elif kind == "saved" and event["last"]:
            folder = self.state_dir
            with suppress(ValueError):
                folder = folder.relative_to(Path.cwd())
            command = f"; predict with: fedlab predict {folder} IMAGES..." if event.get("images") else ""
            self.write(f"the model is in {folder}{command}")

    def _reconnected(self) -> None:
        if self._loss_reported:
            self.write("the server is back")
        self.lost, self._loss_reported = 0.0, False


def _privacy(event: dict[str, Any]) -> str:
    """Return what a training has brought the client's privacy to; empty where it added no noise."""
    if "epsilon" not in event:
        return ""
    limit = f" of {event['max_epsilon']:g}" if event.get("max_epsilon") else ""
    return f"; privacy spent in all runs: epsilon {event['epsilon']:.3g}{limit}"
