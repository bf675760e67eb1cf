"""Numbers for people."""

from __future__ import annotations

import math

import pytest

from fedlab.runs.formatting import p_value


@pytest.mark.parametrize(
    ("p", "text"), [(math.nan, "-"), (0.0004, "< 0.001"), (0.0123, "0.012"), (0.21, "0.21"), (1.0, "1.00")]
)
def test_p_values_for_people(p, text):
    assert p_value(p) == text
