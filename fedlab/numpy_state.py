"""State of NumPy's global random generator, saved and put back in microseconds.

``numpy.random.get_state`` and ``set_state`` copy 624 numbers one by one as Python objects, which takes longer than a
message to a client otherwise does. Here the generator's memory is copied as a block. What it does not hold, the second
number of a pair of normal ones that waits for the next call, is found by taking it.

**Source**: ``BitGenerator.ctypes.state_address`` of NumPy's documentation; the state of MT19937 is 624 words and a
position.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

RANDOM: Any = np.random  # whose stubs lack get_bit_generator
BYTES = 625 * 4  # of MT19937: 624 words and a position


@dataclass(frozen=True)
class NumpyState:
    """State of the global generator.

    Attributes
    ----------
    block
        The memory of an MT19937, or the state of another generator as NumPy gives it.
    normal
        The normal number that waits for the next call, if one does.
    """

    block: Any
    normal: float | None = None


def current() -> NumpyState:
    """Return the state of the global generator; :func:`restore` has to follow, since a waiting number is taken."""
    if (address := _address(RANDOM.get_bit_generator())) is None:
        return NumpyState(np.random.get_state(legacy=False))
    block = ctypes.string_at(address, BYTES)
    normal = float(np.random.standard_normal())
    if ctypes.string_at(address, BYTES) == block:
        return NumpyState(block, normal)
    np.random.standard_normal()  # the second of the pair, so that none waits
    ctypes.memmove(address, block, BYTES)
    return NumpyState(block)


def restore(state: NumpyState) -> None:
    """Put a state of the global generator back."""
    address = _address(RANDOM.get_bit_generator())
    if address is None or not isinstance(state.block, bytes):
        RANDOM.set_state(state.block)
        return
    np.random.seed(0)  # after which no number waits
    ctypes.memmove(address, state.block, BYTES)
    if state.normal is not None:
        name, words, position, *_ = RANDOM.get_state()
        RANDOM.set_state((name, words, position, 1, state.normal))


@cache
def _address(generator: Any) -> int | None:
    """Return where an MT19937 has its state; None for another generator. A generator that is asked for is kept."""
    return int(generator.ctypes.state_address) if isinstance(generator, np.random.MT19937) else None
