"""Room in a client's directory: its owner is told when the disk takes nothing more, and when it does again.

The logs by which a client tells what happens are in that directory, too, so this is looked at by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fedlab.errors import os_error_sentence
from fedlab.files import name_file, private_no_follow

PROBE, PROBE_BYTES = ".room", 16_384  # more than is left in the last blocks of the logs
EVERY = 5.0  # seconds


def check_room(folder: Path) -> None:
    """Write a small file and delete it.

    Raises
    ------
    OSError
        When the folder takes nothing, with its name.
    """
    path = folder / PROBE
    try:
        with name_file(folder), open(path, "wb", buffering=0, opener=private_no_follow) as stream:
            left = PROBE_BYTES
            while left:  # a full disk takes a part first
                left -= stream.write(bytes(left))
    finally:
        with suppress(OSError):
            path.unlink()


class RoomWatch:
    """Reporter of a folder that takes nothing more.

    Parameters
    ----------
    folder
        State directory of a client.
    write
        Called with each line for the client's owner.
    """

    def __init__(self, folder: Path, write: Callable[[str], None]) -> None:
        self.folder, self.write = folder, write
        self.is_full, self._next = False, 0.0

    def look(self) -> None:
        """Check the folder if it was not checked a moment ago; report a change."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + EVERY
        try:
            check_room(self.folder)
        except OSError as error:
            if not self.is_full:
                self.write(
                    f"warning: {os_error_sentence(error)}. Until then this client keeps no model, and sends nothing "
                    "that its audit log cannot hold"
                )
            self.is_full = True
        else:
            if self.is_full:
                self.write(f"there is room again in {self.folder}")
            self.is_full = False
