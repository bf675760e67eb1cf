"""Files of torch's that may come from anywhere: tensors and plain values are read, code never runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fedlab.errors import os_error_sentence


class UnreadableFileError(Exception):
    """Error of a file that cannot be read; its text is why, in a line without the file's name."""


def read_tensors(path: Path, device: torch.device | str = "cpu") -> Any:
    """Return what ``torch.save`` wrote, with tensors on a device.

    Raises
    ------
    UnreadableFileError
        When the file is missing, is damaged, or holds anything but tensors and plain values.
    """
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except torch.OutOfMemoryError:  # nothing is wrong with the file
        raise
    except OSError as error:
        raise UnreadableFileError(os_error_sentence(error)) from error
    except Exception as error:  # damage can show in any layer of the format
        said = str(error).strip()
        if "weights_only" in said:  # torch advises to switch it off, which would run the file's code
            said = "it is damaged, or holds more than tensors and plain values"
        raise UnreadableFileError(said.splitlines()[0] if said else type(error).__name__) from error
