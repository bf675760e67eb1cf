"""User-facing exceptions. Each message states the value, what was expected, and a remedy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

MAX_NAMES = 12  # longest list of names in a message


class FedlabError(Exception):
    """Base of every error that a user can cause or fix; shown as its message, without a traceback."""


class ConfigError(FedlabError):
    """A preset, option, strategy, workload or engine that does not exist, or a value of a wrong type or range."""


class DataError(FedlabError):
    """Data that is missing, truncated or of the wrong shape."""


class IncompatibleWeightsError(DataError):
    """Weights that do not fit the model that they were loaded into."""


class RunError(FedlabError):
    """A run that could not be completed: failed clients, too few clients, a loss that is not finite."""


def suggest(name: str, known: Iterable[str]) -> str:
    """Return the end of an error message: the closest known name, or all of them if none is close."""
    known = sorted(known)
    close = get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(known)}." if len(known) <= MAX_NAMES else "nothing known has a name like that."


def name_list(names: Sequence[str]) -> str:
    """Return names in one line, of a long list the first and last ones.

    >>> name_list(["usps", "mnist"]), name_list([f"shard-{i}" for i in range(1000)])
    ('usps, mnist', 'shard-0, shard-1, shard-2, ..., shard-999')
    """
    return ", ".join(names if len(names) <= MAX_NAMES else (*names[:3], "...", names[-1]))
