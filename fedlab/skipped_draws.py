"""Torch's random stream of the CPU, moved on past many numbers without drawing them.

A client makes a model from its random stream and loads the server's weights into it. What it draws afterwards depends
on how many numbers the first weights took, so they were drawn to be thrown away: 0.2 s for 32 million. To move on is a
linear map of the generator's state over the field of two elements, whose power is a polynomial of the state's next
20,000 words: some milliseconds, whatever the number.

**Source**: Matsumoto and Nishimura, Mersenne Twister, ACM TOMACS 1998 (recurrence; characteristic polynomial in the
appendix); Haramoto, Matsumoto, Nishimura, Panneton and L'Ecuyer, Efficient Jump Ahead for F2-Linear Random Number
Generators, INFORMS Journal on Computing 2008.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Words = NDArray[np.uint32]

SIZE, MIDDLE, DEGREE = 624, 397, 19937  # words of a state, place of the recurrence, bits of a state
UPPER, LOWER, TWIST = np.uint32(0x80000000), np.uint32(0x7FFFFFFF), 0x9908B0DF
# Where torch's state of a generator (bytes,) holds numbers left before the next block, place in this one, and words.
LEFT, NEXT, WORDS = slice(8, 12), slice(16, 24), slice(24, 24 + 8 * SIZE)

FILLS = (Tensor.uniform_, nn.init.uniform_, nn.init.kaiming_uniform_)  # as they are seen, each of one number a weight


def moved_on(state: Tensor, count: int) -> Tensor:
    """Return the state of a CPU generator after so many numbers of 32 bits, from its state as torch returns it.

    One such number makes one float32 of ``uniform_``.
    """
    found = state.clone()
    raw = found.numpy()
    left, place = raw[LEFT].view(np.int32), raw[NEXT].view(np.uint64)
    used = count + (SIZE if left[0] == 1 else int(place[0]))  # 1: the next number begins a block
    blocks, used = (used // SIZE, used % SIZE) if used % SIZE else (used // SIZE - 1, SIZE)
    if not count:
        return found
    words = raw[WORDS].view(np.uint64)
    words[:] = _later_block(words.astype(np.uint32), blocks)
    left[0], place[0] = SIZE + 1 - used, used
    return found


class CountedDraws(TorchFunctionMode):
    """Counts the numbers that ``uniform_`` takes from torch's generator of the CPU for float32, as layers' weights do.

    Nothing else is counted: where something else draws, the generator is not where :func:`moved_on` leads.

    Attributes
    ----------
    count
        How many.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self._filled: list[Tensor] = []  # kept, so that no other tensor gets the memory of one

    @property
    def places(self) -> set[int]:
        """Addresses of the memory that was filled with them."""
        return {tensor.untyped_storage().data_ptr() for tensor in self._filled}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in FILLS and kwargs.get("generator") is None:
            filled: Tensor = args[0] if args else kwargs["tensor"]
            if filled.is_cpu and filled.dtype == torch.float32:
                self.count += filled.numel()
                self._filled.append(filled.detach())
        return func(*args, **kwargs)


def _later_block(words: Words, blocks: int) -> Words:
    """Return the block (624,) that comes so many blocks after another one."""
    if blocks <= DEGREE // SIZE + 2:
        for _ in range(blocks):
            words = _next_block(words)
        return words
    # One word too early: of the first word of a state only the upper bit counts.
    taken = _power(SIZE * blocks - 1)
    parts = [words]
    while len(parts) * SIZE < DEGREE + SIZE:
        parts.append(_next_block(parts[-1]))
    following = np.concatenate(parts)
    windows = np.lib.stride_tricks.sliding_window_view(following, SIZE)
    total = np.zeros(SIZE, np.uint32)
    for some in np.array_split(taken, max(1, len(taken) // 256)):
        total ^= np.bitwise_xor.reduce(windows[some], axis=0)
    return np.append(total[1:], _twisted(total[:1], total[1:2]) ^ total[MIDDLE])


def _next_block(words: Words) -> Words:
    """Return the 624 words that follow 624 others."""
    found = np.concatenate([words, np.empty(SIZE, np.uint32)])
    step = SIZE - MIDDLE  # words that depend on none of each other
    for start in range(0, SIZE, step):
        end = min(start + step, SIZE)
        twisted = _twisted(found[start:end], found[start + 1 : end + 1])
        found[SIZE + start : SIZE + end] = found[start + MIDDLE : end + MIDDLE] ^ twisted
    return found[SIZE:]


def _twisted(words: Words, after: Words) -> Words:
    joined = (words & UPPER) | (after & LOWER)
    return (joined >> np.uint32(1)) ^ np.where(joined & np.uint32(1), np.uint32(TWIST), np.uint32(0))


@lru_cache(maxsize=8)
def _power(steps: int) -> NDArray[np.intp]:
    """Return the exponents of t^steps modulo the recurrence's characteristic polynomial, ascending."""
    value = 1
    for bit in format(steps, "b"):
        value = int(format(value, "b"), 4)  # squared: each bit goes to twice its place
        value = _reduced(value << int(bit))
    return np.flatnonzero(np.frombuffer(format(value, "b")[::-1].encode(), np.uint8) == ord("1"))


def _reduced(value: int) -> int:
    """Return a polynomial, whose coefficients are bits, modulo the characteristic polynomial."""
    terms = _characteristic()
    while above := value >> DEGREE:
        value &= (1 << DEGREE) - 1
        for term in terms:
            value ^= above << term
    return value


@cache
def _characteristic() -> list[int]:
    """Return the exponents of the characteristic polynomial but for the largest, 19937."""
    bits = 32
    above, below = {SIZE, MIDDLE}, {SIZE - 1, MIDDLE - 1}  # t^n + t^m, and that divided by t

    def times(one: set[int], other: set[int]) -> set[int]:
        found: set[int] = set()
        for first in one:
            found ^= {first + second for second in other}
        return found

    power: list[set[int]] = [{0}]
    for _ in range(bits - 1):
        power.append(times(power[-1], below))
    found = times(above, power[bits - 1])
    for place in range(bits - 1):
        if TWIST >> place & 1:
            found ^= times(above, power[bits - 2 - place])
    if TWIST >> (bits - 1) & 1:
        found ^= {0}
    found.remove(DEGREE)
    return sorted(found)
