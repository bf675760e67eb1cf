"""Reports of clients to a server loop of the same process, and of no other."""

from __future__ import annotations

import os

import pytest

from fedlab.runs.client_progress import listening, progress_of
from fedlab.training import null_progress


def test_reports_reach_the_listener_while_it_listens_and_nobody_afterwards():
    heard = []
    with listening(lambda *report: heard.append(report)):
        progress_of(3)("training", 2, 9)
        with pytest.raises(ValueError, match="no"), listening(lambda *report: None):
            raise ValueError("no")
        progress_of(1)("training", 4, 9)
    assert progress_of(3) is null_progress
    assert heard == [(3, "training", 2, 9), (1, "training", 4, 9)]


def test_a_fork_has_no_listener():
    with listening(lambda *report: None):
        child = os.fork()
        if child == 0:
            os._exit(0 if progress_of(0) is null_progress else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert progress_of(0) is not null_progress
