"""Named random streams: the same random numbers at the same place of a run, on every engine.

One ambient seed is not enough, because Flower's network code draws from the global generators itself, and how often
depends on the engine. So every use of randomness opens a scope whose seed is made from its names::

    with seeded(run_seed, "train", server_round, partition):
        ...

See rule 3 of ``docs/architecture.md``.
"""

from __future__ import annotations

import hashlib
import os
import random
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch

from fedlab import numpy_state
from fedlab.errors import FedlabWarning
from fedlab.machine import check_threads, note_threads
from fedlab.numpy_state import NumpyState

DEBUG_MODES = {"warn": 1, "error": 2}  # torch's numbers of them


def seed_of(*names: int | str) -> int:
    """Return a seed in [0, 2**63) that depends on every name and on their order.

    >>> seed_of(0, "train", 1) == seed_of(0, "train", 1)
    True
    """
    hashed = _hashed(*names[:-1]).copy()  # of many clients, who differ in their last name only, computed once
    hashed.update("".join(f"{type(last).__name__}:{last}" for last in names[-1:]).encode())
    return int.from_bytes(hashed.digest()[:8], "big") >> 1


@lru_cache(maxsize=16, typed=True)  # 1 and True are different names
def _hashed(*names: int | str) -> Any:
    """Return the hash of the names that come before the last."""
    return hashlib.sha256("".join(f"{type(name).__name__}:{name}\x1f" for name in names).encode())


class seeded:
    """Run the body on a stream of its own of ``random``, NumPy and torch, and restore the global streams afterwards.

    Directly within :func:`turns` they are left where the body ends.

    Parameters
    ----------
    names
        Names of the stream.
    """

    def __init__(self, *names: int | str) -> None:
        self._seed = seed_of(*names)

    def __enter__(self) -> None:
        """Enter the stream at its beginning."""
        global _is_between_turns
        self._exclusive = exclusive()
        self._exclusive.__enter__()
        self._is_turn, _is_between_turns = _is_between_turns, False
        self._before = None if self._is_turn else _current()
        _enter(self._seed)

    def __exit__(self, *error: object) -> None:
        """Go back to the streams from before."""
        global _is_between_turns
        if self._before is not None:
            _restore(self._before)
        _is_between_turns = self._is_turn
        self._exclusive.__exit__()


def _enter(seed: int) -> None:
    """Seed the global generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    # torch.manual_seed notes the stack for each kind of GPU, which takes longer than a small step.
    for generator in (torch.default_generator, *_gpu_generators()):
        generator.manual_seed(seed)


@contextmanager
def turns() -> Iterator[None]:
    """Run a body that draws in scopes of :func:`seeded` only: nothing is saved and restored between two of them.

    That is most of what a scope costs. The global generators are left wherever the last scope ended, so it belongs
    into a :func:`seeded` or a :func:`preserved`. Scopes within a scope are restored as ever.

    >>> with preserved(), turns():
    ...     with seeded(0, "one"):
    ...         one = torch.rand(1)
    ...     with seeded(0, "two"):
    ...         two = torch.rand(1)
    >>> with seeded(0, "two"):
    ...     torch.equal(two, torch.rand(1))
    True
    """
    with exclusive(), _between_turns(True):
        yield


_is_between_turns = False  # of the thread that is in `exclusive`


class _between_turns:
    """Set whether a scope that opens now has to restore nothing, while the context lasts; enter with what it was."""

    def __init__(self, value: bool) -> None:
        self._value = value

    def __enter__(self) -> bool:
        global _is_between_turns
        self._before, _is_between_turns = _is_between_turns, self._value
        return self._before

    def __exit__(self, *error: object) -> None:
        global _is_between_turns
        _is_between_turns = self._before


class Stream:
    """A random stream that can be left and entered again, for clients that take turns.

    ``with Stream(*names):`` runs its body on the stream of ``seeded(*names)``; the next ``with`` goes on where the last
    one ended. The global generators are left wherever a turn ended: all turns belong into one :func:`preserved`.

    >>> turns = Stream(0, "turns")
    >>> with seeded(0, "turns"):
    ...     both = torch.rand(2)
    >>> with preserved():
    ...     with turns:
    ...         first = torch.rand(1)
    ...     with turns:
    ...         second = torch.rand(1)
    >>> torch.equal(both, torch.cat([first, second]))
    True
    """

    def __init__(self, *names: int | str) -> None:
        self._seed = seed_of(*names)
        self._states: _States | None = None
        self._cpu: torch.Generator | None = None

    def __enter__(self) -> None:
        """Enter the stream, where it was left."""
        if self._states is None:
            _enter(self._seed)
        else:
            _restore(self._states)
        if self._cpu is not None:
            torch.default_generator.set_state(self._cpu.get_state())

    def __exit__(self, *error: object) -> None:
        """Remember where the stream is."""
        self._states, self._cpu = _current(), None

    def cpu_generator(self) -> torch.Generator:
        """Return a generator that draws the numbers of the stream which torch's default one would draw on the CPU.

        It takes a tenth of what a turn does. The next turn goes on after what was drawn from it, and needs another one.

        >>> turns = Stream(0, "turns")
        >>> first = torch.rand(1, generator=turns.cpu_generator())
        >>> with seeded(0, "turns"):
        ...     torch.equal(torch.rand(1), first)
        True
        """
        if self._cpu is None:
            self._cpu = torch.Generator()
            if self._states is None:
                self._cpu.manual_seed(self._seed)
            else:
                self._cpu.set_state(self._states[2])
        return self._cpu


def in_turn(streams: Sequence[Stream], act: Callable[[int], object]) -> None:
    """Carry out something for each position, on the stream of that position.

    Most of what a turn takes is to change the generators, so this is left out where nobody draws: if the first does
    not, all others go on a stream that no number is taken from. If one of them takes a number nevertheless, ``act`` is
    called once more for all but the first, each on its own stream: it has to depend on nothing else.

    All of it belongs into one :func:`preserved`.

    Parameters
    ----------
    act
        Called with a position; what it returns is not read.
    """
    if not streams:
        return
    with streams[0]:
        draws = _Draws()
        act(0)
        somebody_draws = draws.were_taken()
    rest = range(1, len(streams))
    if not somebody_draws:
        with Stream("nobody draws"):
            draws = _Draws()
            for position in rest:
                act(position)
            somebody_draws = draws.were_taken()
    if somebody_draws:
        for position in rest:
            with streams[position]:
                act(position)


class _Draws:
    """Finds out whether numbers are taken from the global generators, from now on."""

    def __init__(self) -> None:
        self._before = self._here()

    def were_taken(self) -> bool:
        """Return True if the generators are not where they were."""
        before, now = self._before, self._here()
        if not isinstance(before[1].block, bytes):  # another generator of NumPy, of which little is known
            return True
        same = before[:2] == now[:2] and torch.equal(before[2], now[2])
        return not (same and all(map(torch.equal, before[3], now[3])))

    def _here(self) -> _States:
        states = _current()
        _restore(states)  # NumPy's waiting number was taken to see it
        return states


@contextmanager
def preserved() -> Iterator[None]:
    """Run the body and restore the global random streams afterwards."""
    with exclusive(), _between_turns(False):
        before = _current()
        try:
            yield
        finally:
            _restore(before)


_States = tuple[Any, NumpyState, torch.Tensor, list[torch.Tensor]]


def _current() -> _States:
    gpus = [generator.get_state() for generator in _gpu_generators()]
    return random.getstate(), numpy_state.current(), torch.default_generator.get_state(), gpus


def _restore(states: _States) -> None:
    random.setstate(states[0])
    numpy_state.restore(states[1])
    torch.default_generator.set_state(states[2])
    for generator, state in zip(_gpu_generators(), states[3], strict=True):
        generator.set_state(state)


def _gpu_generators() -> tuple[torch.Generator, ...]:
    """Return the global generator of each GPU; each state lies on the CPU, so that no GPU is waited for."""
    if not _gpus():
        return ()
    torch.cuda.init()  # type: ignore[no-untyped-call]  # does nothing but the first time
    return tuple(torch.cuda.default_generators)


@cache
def _gpus() -> tuple[int, ...]:
    """Return the indices of the GPUs, cached: the query takes longer than a seed scope."""
    return tuple(range(torch.cuda.device_count())) if torch.cuda.is_available() else ()


class WaitingWarning(FedlabWarning):
    """Warning that a run waits for another one of this process."""


_state_lock = threading.RLock()


def _new_lock() -> None:
    """Make the lock anew in a fork, in which the thread that held it does not exist."""
    global _state_lock
    _state_lock = threading.RLock()


os.register_at_fork(after_in_child=_new_lock)


class exclusive:
    """Keep other threads from what a process has once: random generators, torch's modes, Flower's identity.

    A thread may enter again. Another one waits: two runs in two threads are done one after the other, each with the
    bits that it has alone. (A class, since a generator takes as long as a third of a random stream.)

    Parameters
    ----------
    what
        What waits, for the warning; empty for a short wait that nobody needs to know of.

    Warns
    -----
    WaitingWarning
        When another thread is in, and ``what`` says who waits.
    """

    def __init__(self, what: str = "") -> None:
        self._what = what

    def __enter__(self) -> None:
        """Wait until no other thread is in."""
        self._lock = _state_lock
        if self._lock.acquire(blocking=False):
            return
        if self._what:
            warnings.warn(
                f"{self._what} waits for a run in another thread: random generators and torch's settings belong to the "
                "whole process. Runs side by side need processes: `fedlab compare --jobs`, multiprocessing, or "
                "engine=ray",
                WaitingWarning,
                stacklevel=2,
            )
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        """Let others in."""
        self._lock.release()


class deterministic:
    """Run the body so that torch gives the same bits for the same seed: fixed thread count, deterministic kernels.

    Within another such scope, as in each message to a client of a process, next to nothing has to be done.

    Parameters
    ----------
    threads
        Number of threads.
    strict
        True if an operation without a deterministic kernel is an error; else torch warns of it.

    Raises
    ------
    ConfigError
        When this process cannot have as many threads.
    """

    def __init__(self, threads: int, *, strict: bool = True) -> None:
        # Every empty tensor would be filled with NaN first, a tenth of a small network's time; nothing reads them.
        self._wanted = threads, DEBUG_MODES["error" if strict else "warn"], False, False

    def __enter__(self) -> None:
        """Set what is not so already."""
        check_threads(self._wanted[0])
        note_threads(self._wanted[0])
        self._exclusive = exclusive()
        self._exclusive.__enter__()
        self._before = _modes()
        if self._before != self._wanted:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            _set_modes(self._wanted)

    def __exit__(self, *error: object) -> None:
        """Set what was before."""
        _set_modes(self._before)
        self._exclusive.__exit__()


def _modes() -> tuple[int, int, bool, bool]:
    """Return threads, debug mode of deterministic kernels, search for cuDNN's kernels, filling of empty tensors."""
    flags: Any = torch.utils.deterministic
    benchmark = torch.backends.cudnn.benchmark
    return torch.get_num_threads(), torch.get_deterministic_debug_mode(), benchmark, flags.fill_uninitialized_memory


def _set_modes(wanted: tuple[int, int, bool, bool]) -> None:
    """Set what is not so already: to set it takes longer than a message to a small client otherwise does."""
    if (current := _modes()) == wanted:
        return
    threads, mode, benchmark, filled = current
    if threads != wanted[0]:
        torch.set_num_threads(wanted[0])
    if mode != wanted[1]:
        torch.set_deterministic_debug_mode(wanted[1])  # use_deterministic_algorithms imports the compiler, 2 s
    if benchmark != wanted[2]:
        torch.backends.cudnn.benchmark = wanted[2]
    if filled != wanted[3]:
        flags: Any = torch.utils.deterministic
        flags.fill_uninitialized_memory = wanted[3]
