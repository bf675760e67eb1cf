"""User-facing exceptions. Each message states the value, what was expected, and a remedy."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

HELP_PAGE = "the page 'What can go wrong' of the documentation (docs/how-to/troubleshooting.md)"
MAX_NAMES = 12  # longest list of names in a message


class FedlabError(Exception):
    """Base of every error that a user can cause or fix; shown as its message, without a traceback."""


class ConfigError(FedlabError):
    """A preset, option, strategy, workload or engine that does not exist, or a value of a wrong type or range."""


class DataError(FedlabError):
    """Data that is missing, truncated or of the wrong shape."""


class NoServerDataError(DataError):
    """A workload whose server has no examples, and a run that needs some."""


class IncompatibleWeightsError(DataError):
    """Weights that do not fit the model that they were loaded into."""


class RunError(FedlabError):
    """A run that could not be completed: failed clients, too few clients, a loss that is not finite."""


class TooFewRepliesError(RunError):
    """A phase with fewer valid replies than the run needs.

    Attributes
    ----------
    what
        Which clients failed, in one line.
    valid
        Number of valid replies.
    """

    def __init__(self, message: str, what: str = "", valid: int = 0) -> None:
        super().__init__(message)
        self.what, self.valid = what or message, valid


class FedlabWarning(UserWarning):
    """Base of every warning for users, shown as its message: something was left out, or done in another way."""


REMEDIES = {
    errno.ENOSPC: "free some space, or choose another folder",
    errno.EDQUOT: "free some of your quota, or choose another folder",
    errno.EFBIG: "raise the limit of a file's size (`ulimit -f`), or choose another folder",
    errno.EROFS: "that file system cannot be written; choose another folder",
    errno.EACCES: "change its permissions or its owner, or choose another place",
    errno.EPERM: "change its permissions or its owner, or choose another place",
    errno.ENOENT: "check the path; a link may lead nowhere",
    errno.EEXIST: "a file, or a link that leads nowhere, is in its place; remove it, or choose another folder",
    errno.ENOTDIR: "a part of the path is a file; choose another",
    errno.EISDIR: "name a file instead",
    errno.ELOOP: "links there lead to each other; choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit of open files: `ulimit -n 4096`",
    errno.ENOMEM: "free some memory, or ask for less",
    errno.ENOLCK: "locks do not work on that file system; choose a folder on a local disk",
    errno.ENOTSUP: "that file system cannot do this; choose a folder on a local disk",
    errno.EADDRINUSE: "stop what uses the address, or choose another port",
}


NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def os_error_sentence(error: OSError) -> str:
    """Return an error of the operating system as a sentence: where, what, and what to do.

    >>> os_error_sentence(OSError(errno.ENOSPC, "No space left on device", "runs/a"))
    'runs/a: no space left on device; free some space, or choose another folder'
    """
    if error.strerror is None:  # made by a library, with a text only
        return str(error) or type(error).__name__
    what = error.strerror[:1].lower() + error.strerror[1:]
    where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else error.filename
    remedy = REMEDIES.get(error.errno or 0, "")
    return (f"{where}: " if where is not None else "") + what + (f"; {remedy}" if remedy else "")


def no_room_sentence(error: Exception) -> str:
    """Return an error of a full disk as a sentence; "" for any other, of which a traceback says more.

    >>> no_room_sentence(OSError("the disk is gone")), no_room_sentence(ValueError())
    ('', '')
    """
    return os_error_sentence(error) if isinstance(error, OSError) and error.errno in NO_ROOM else ""


def suggest(name: str, known: Iterable[str]) -> str:
    """Return the end of an error message: the closest known name, or all of them if none is close."""
    known = sorted(known)
    close = get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(known)}." if len(known) <= MAX_NAMES else "nothing known has a name like that."


def plural(count: int, thing: str) -> str:
    """Return how many there are of a thing whose plural ends in s.

    >>> plural(1, "round"), plural(2, "round"), plural(1000, "client")
    ('1 round', '2 rounds', '1,000 clients')
    """
    return f"{count:,} {thing}{'s' * (count != 1)}"


def name_list(names: Sequence[str]) -> str:
    """Return names in one line, of a long list the first and last ones.

    >>> name_list(["usps", "mnist"]), name_list([f"shard-{i}" for i in range(1000)])
    ('usps, mnist', 'shard-0, shard-1, shard-2, ..., shard-999')
    """
    return ", ".join(names if len(names) <= MAX_NAMES else (*names[:3], "...", names[-1]))
