"""Refused replies: a client is told of the last, and left out after several in a row of one kind."""

from __future__ import annotations

import json

import pytest

from fedlab.comm.refusals import MAX_REFUSALS, Refusals


@pytest.fixture
def refusals():
    return Refusals()


def test_several_in_a_row_leave_a_client_out_with_the_last_reason(refusals):
    assert [refusals.add(1, "train", number, f"reason {number}") for number in range(MAX_REFUSALS)] == [
        False,
        False,
        True,
    ]
    assert refusals.unreported == {1: {"round": 2, "reason": "reason 2"}}
    assert (
        refusals.left_out[1].startswith("3 of its replies in a row were refused") and "reason 2" in refusals.left_out[1]
    )


def test_a_valid_reply_and_another_kind_of_message_begin_a_row_anew(refusals):
    for kind in ("train", "evaluate"):
        for _ in range(MAX_REFUSALS - 1):
            assert not refusals.add(1, kind, 1, "bad")
    assert not refusals.add(2, "train", 1, "bad")  # nor does another client's count
    refusals.accept(1, "train")
    refusals.accept(3, "train")  # that was never refused
    assert not refusals.add(1, "train", 2, "bad")
    assert refusals.add(1, "evaluate", 2, "bad") and list(refusals.left_out) == [1]


def test_a_resumed_run_goes_on_counting(refusals):
    for _ in range(MAX_REFUSALS - 1):
        refusals.add(1, "train", 1, "bad")
    again = Refusals()
    again.restore(refusals.state())
    assert again.state() == refusals.state() and json.dumps(again.state()["in_a_row"])
    assert again.add(1, "train", 2, "bad")
    assert not refusals.left_out  # the state is no part of the one that it came from
