"""A cell for people: its name, and the last line of what went wrong."""

from __future__ import annotations

import pytest

from fedlab.comparison.cell import FAILED, PENDING, Cell


def test_a_name_has_label_options_and_seed():
    cell = Cell("mine", "dualadapt", 3, {"rounds": "2", "client.steps": "40"}, "cells/a-3")
    assert cell.name == "mine, rounds=2, client.steps=40, seed 3" and cell.status == PENDING


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("Traceback\n  line 1\nValueError: no luck\n", "ValueError: no luck"),
        (None, "no reason is known"),
        (" \n", "no reason is known"),
    ],
)
def test_a_reason_is_the_last_line(error, reason):
    assert Cell("a", "s", 0, {}, "cells/a-0", FAILED, error).reason == reason
