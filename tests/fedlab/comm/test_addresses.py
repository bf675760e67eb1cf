"""Addresses as people write them: what is one, and what is none."""

from __future__ import annotations

import pytest

from fedlab.comm.addresses import split_address


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("lab.example.org:9092", ("lab.example.org", 9092)),
        ("10.0.0.1:1", ("10.0.0.1", 1)),
        ("[::1]:65535", ("::1", 65535)),
    ],
)
def test_an_address_is_host_and_port(text, found):
    assert split_address(text) == found


@pytest.mark.parametrize(
    "text",
    [
        *("", "lab", ":9092", "lab:", "lab:port", "lab:0", "lab:65536", "lab:-1", "lab:9092x", "lab:\u0661"),
        *("::1:9092", "[lab]:9092", "[::1:9092", "[]:9092", "la b:9092", "user@lab:9092", "http://lab:9092", "a\n:1"),
    ],
)
def test_anything_else_is_none(text):
    assert split_address(text) is None
