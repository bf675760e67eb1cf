"""Attempts at a phase: where clients are machines that come and go, one that too few of them answered is repeated.

It is repeated as `fedlab resume` repeats a round: strategy and model are what they were before, the round is the same
one. So a run whose clients were away for a while ends with the bits of one whose clients never were. Where clients are
sampled, others are drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import TypeVar

from fedlab.errors import TooFewRepliesError
from fedlab.strategies.protocol import ServerStrategy

Found = TypeVar("Found")


class Attempts:
    """Carries out phases, as often as is needed and allowed.

    Parameters
    ----------
    most
        Attempts at a phase, 1 for none but the first.
    strategy
        Its state is put back before training is repeated.
    again
        Called with a sentence about the failed attempt before a phase is repeated: it waits for clients.

    Attributes
    ----------
    failed
        Failed attempts at the current phase.
    """

    def __init__(self, most: int, strategy: ServerStrategy, again: Callable[[str], None]) -> None:
        self.most, self.strategy, self._again = most, strategy, again
        self.failed = 0

    def train(self, phase: Callable[[], Found]) -> Found:
        """Return what a training phase returns.

        Raises
        ------
        TooFewRepliesError
            When too few clients answered the last attempt, or the privacy budget allows no other.
        """
        while True:
            before = deepcopy(self.strategy.state()) if self._may_fail else {}
            try:
                return self._done(phase())
            except TooFewRepliesError as error:
                account = self.strategy.privacy()
                self._fail(error, repeatable=not (account and account.exhausted()))
                released = dict(account.releases) if account else {}
                self.strategy.restore(before)
                if account:
                    account.releases = released  # what was asked for was released, used or not
                self._again(self._note(error))

    def evaluate(self, phase: Callable[[], Found], *, clients_leave: bool) -> Found:
        """Return what an evaluation phase returns.

        Parameters
        ----------
        clients_leave
            True if those that answered may have left, as after the last round: then it is repeated only where nobody
            answered.

        Raises
        ------
        TooFewRepliesError
            When too few clients answered the last attempt.
        """
        while True:
            try:
                return self._done(phase())
            except TooFewRepliesError as error:
                self._fail(error, repeatable=not (clients_leave and error.valid))
                self._again(self._note(error))

    @property
    def _may_fail(self) -> bool:
        return self.failed + 1 < self.most

    def _done(self, found: Found) -> Found:
        self.failed = 0
        return found

    def _fail(self, error: TooFewRepliesError, *, repeatable: bool) -> None:
        """Count a failed attempt; raise its error if it was the last."""
        if not (self._may_fail and repeatable):
            self.failed = 0
            raise error
        self.failed += 1

    def _note(self, error: TooFewRepliesError) -> str:
        return f"{error.what}; the phase is repeated (attempt {self.failed + 1} of {self.most})"
