"""Texts of other machines: cut, cleaned, and never blank."""

from __future__ import annotations

import pytest

from fedlab.comm.foreign_text import CUT, MAX_NAME, MAX_REASON, clean_name, clean_reason


def test_a_reason_keeps_its_lines_and_loses_what_is_no_text():
    assert clean_reason("one\n\ttwo\x1b[31m red\u202e\x00") == "one\n\ttwo[31m red"


@pytest.mark.parametrize("text", [None, "", " \n\t", "\x1b\x00"])
def test_a_reason_is_never_blank(text):
    assert clean_reason(text) == "no reason given"


@pytest.mark.parametrize("character", ["a", "\u00f6", "\U0001f600"])
def test_a_long_reason_keeps_begin_and_end_in_so_many_bytes(character):
    for length in (MAX_REASON + 1, 10 * MAX_REASON):
        found = clean_reason("begin" + length * character + "end")
        assert len(found.encode()) <= MAX_REASON
        assert found.startswith("begin") and found.endswith("end") and CUT in found
    assert clean_reason("x" * MAX_REASON) == "x" * MAX_REASON
    assert len(clean_reason("y" * 100, most=40)) <= 40


def test_a_lone_surrogate_is_no_error():
    assert clean_reason("a\ud800" + "b" * 3 * MAX_REASON).startswith("a")


def test_a_name_is_one_short_line():
    assert clean_name("usps\n\x1b[2J") == "usps[2J"
    assert clean_name(5 * MAX_NAME * "n") == MAX_NAME * "n" and clean_name(None) == "None"
