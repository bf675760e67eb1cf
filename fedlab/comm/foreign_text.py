"""Texts that another machine has chosen, cut and cleaned before they reach a log, a terminal or a page."""

from __future__ import annotations

MAX_REASON = 2_000  # bytes of a reason that are kept: its begin and, because a traceback ends with its error, its end
MAX_NAME = 100  # characters of a name
HEAD = 500  # bytes of a long reason's begin
CUT = " [...] "
REFUSED = "fedlab: refused: "  # begin of the line by which a process of a client tells why it does not take part


def clean_reason(text: object, most: int = MAX_REASON) -> str:
    """Return a text as printable characters and line ends, at most ``most`` bytes; never blank.

    Escape codes lose their escape, and what changes the direction of writing is left out.
    """
    raw = str(text or "")
    if len(raw) > 2 * most:  # before anything looks at each character
        raw = raw[:most] + CUT + raw[-most:]
    kept = "".join(character for character in raw if character.isprintable() or character in "\n\t").strip()
    encoded = kept.encode("utf-8", "replace")
    if len(encoded) > most:
        head = min(HEAD, most // 4)
        tail = most - head - len(CUT)
        kept = encoded[:head].decode("utf-8", "ignore") + CUT + encoded[-tail:].decode("utf-8", "ignore")
    return kept or "no reason given"


def clean_name(text: object) -> str:
    """Return a name in one line of printable characters, at most ``MAX_NAME`` of them."""
    return "".join(character for character in str(text)[:MAX_NAME] if character.isprintable())
