"""Errors that speak to the user: what came, what was expected, what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

MAX_NAMES = 12  # names that a sentence can hold


class FedlabError(Exception):
    """Base of every error that a user can cause or mend; shown as its sentence, never as a traceback."""


class ConfigError(FedlabError):
    """A preset, knob, strategy, workload or engine that does not exist, or a value of a wrong type or range."""


class DataError(FedlabError):
    """Data that is missing, truncated or of the wrong shape."""


class IncompatibleWeightsError(DataError):
    """Weights of another model than the one that they were given to."""


class RunError(FedlabError):
    """A federation that could not do what was asked: failed clients, too few clients, a loss that is not finite."""


def suggest(name: str, known: Iterable[str]) -> str:
    """Sentence tail naming the closest known name, or all of them when none is close."""
    known = sorted(known)
    close = get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(known)}." if len(known) <= MAX_NAMES else "nothing known has a name like that."
