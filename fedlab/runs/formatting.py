"""Numbers for people: bytes, durations, p-values."""

from __future__ import annotations

import math

MISSING = "-"  # in place of a number that was not measured
HOUR = 3600  # seconds


def human_bytes(count: float) -> str:
    """Return a number of bytes in decimal units.

    >>> human_bytes(1_234_567)
    '1.2 MB'
    """
    for unit in ("B", "kB", "MB"):
        if count < 999.95:  # what would round to 1000 is the next unit's
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def elapsed(seconds: float) -> str:
    """Return a duration, given in seconds.

    >>> elapsed(75.2), elapsed(5025)
    ('1 min 15 s', '1 h 24 min')
    """
    if round(seconds) >= HOUR:
        hours, minutes = divmod(round(seconds / 60), 60)
        return f"{hours} h {minutes} min"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s" if seconds >= 10 else f"{seconds:.1f} s"


def p_value(p: float) -> str:
    """Return a p-value with no more digits than it deserves.

    >>> p_value(0.0004), p_value(0.0123), p_value(0.21)
    ('< 0.001', '0.012', '0.21')
    """
    return MISSING if not math.isfinite(p) else "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"
