"""NumPy's global generator goes on as if nothing had happened, whatever is drawn in between."""

from __future__ import annotations

import numpy as np
import pytest

from fedlab import numpy_state
from fedlab.seeds import Stream, preserved, seeded


@pytest.fixture(autouse=True)
def untouched():
    before = np.random.get_state()
    yield
    np.random.set_state(before)


def draws(count):
    return [np.random.standard_normal() for _ in range(count)] + np.random.random(700).tolist() + [np.random.randn()]


@pytest.mark.parametrize("taken", [0, 1, 2, 3])  # after an odd number a normal number waits
@pytest.mark.parametrize("inside", [0, 1, 2])
def test_a_scope_leaves_no_trace(taken, inside):
    np.random.seed(3)
    expected = draws(taken + 5)
    np.random.seed(3)
    found = [np.random.standard_normal() for _ in range(taken)]
    with seeded("a scope"):
        draws(inside)
    found += [np.random.standard_normal() for _ in range(5)] + np.random.random(700).tolist() + [np.random.randn()]
    assert found == expected


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_turns_of_a_stream_go_on_where_it_was_left(taken):
    with seeded("turns"):
        expected = draws(taken + 3)
    stream = Stream("turns")
    with preserved():
        with stream:
            found = [np.random.standard_normal() for _ in range(taken)]
        with Stream("another"):
            draws(1)
        with stream:
            found += [np.random.standard_normal() for _ in range(3)]
            found += [*np.random.random(700).tolist(), np.random.randn()]
    assert found == expected


def test_a_generator_of_another_kind_is_put_back_too():
    before = np.random.get_bit_generator()
    try:
        np.random.set_bit_generator(np.random.PCG64(5))
        state = numpy_state.current()
        expected = np.random.random(5).tolist()
        numpy_state.restore(state)
        assert np.random.random(5).tolist() == expected
    finally:
        np.random.set_bit_generator(before)


def test_the_state_is_what_numpy_says():
    np.random.seed(1)
    np.random.random(5)
    before = np.random.get_state()
    numpy_state.restore(numpy_state.current())
    after = np.random.get_state()
    assert (before[1] == after[1]).all() and before[2:] == after[2:]
