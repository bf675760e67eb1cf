"""The user's cache folder (``$XDG_CACHE_HOME/fedlab``, by default ``~/.cache/fedlab``): safe to delete at any time."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fedlab.files import user_cache, write_atomically


def cache_folder(kind: str) -> Path:
    """Return the user's cache folder for one kind of content; it need not exist, or be writable."""
    return user_cache() / "fedlab" / kind


def cache_key(*names: str) -> str:
    """Return a file name (16 hexadecimal digits) made from everything that the cached content depends on."""
    return hashlib.sha256("\x1f".join(names).encode()).hexdigest()[:16]


def try_write(path: Path, content: bytes) -> bool:
    """Replace a file as :func:`fedlab.files.write_atomically` does; return False where that is not possible."""
    try:
        write_atomically(path, content)
    except OSError:
        return False
    return True
