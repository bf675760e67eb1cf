"""Ray actors of one run on a cluster that others use, too: those that run are lent, and a lost one is replaced."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from fedlab.runs.directory import RUN_DIRECTORY, RunDirectory

MAX_LOSSES = 3  # of actors with one call: then it is the call that ends them
PATIENCE = 5.0  # seconds after which the user is told that a run waits
MAX_FAILED_STARTS = 5  # one after another: it is not the machines that fail
POLL_SECONDS = 1.0

Question = Callable[[], bool]


class GivenUp(RayError):
    """A result that is not waited for any more."""


class ActorPool:
    """Actors that are asked for at once and lent as soon as the cluster has room for them.

    Parameters
    ----------
    create
        Asks for another actor.
    number
        Number of actors.
    cpus, gpus
        What each of them reserves.
    """

    def __init__(self, create: Callable[[], Any], number: int, cpus: float, gpus: float) -> None:
        self.cpus, self.gpus, self._had_room = cpus, gpus, has_room(cpus, gpus)
        self._create, self._idle = create, SimpleQueue[Any]()
        self._starting: dict[Any, Any] = {}  # reference that is ready with the actor -> the actor
        self._lock, self._asked, self._closed = threading.Lock(), threading.Event(), False
        self._failed, self._living = 0, 0
        for _ in range(number):
            self._ask()
        threading.Thread(target=self._watch, name="ray-actors", daemon=True).start()

    def _ask(self) -> None:
        actor = self._create()
        with self._lock:
            self._starting[actor.__ray_ready__.remote()] = actor
            self._asked.set()

    def _watch(self) -> None:
        """Make actors that have started available; whoever waits for one is told if this cannot go on."""
        try:
            while not self._closed:
                self._asked.wait()
                with self._lock:
                    starting = list(self._starting)
                    if not starting and not self._closed:
                        self._asked.clear()
                if starting and ray.wait(starting, num_returns=1, timeout=POLL_SECONDS)[0]:
                    self._on_starts(ray.wait(starting, num_returns=len(starting), timeout=0)[0])
        except Exception as error:
            self._idle.put(error)

    def _on_starts(self, ended: Sequence[Any]) -> None:
        """Count all starts that have ended before saying that none succeeds: they come in any order."""
        last = None
        for started in ended:
            last = self._on_start(started) or last
        with self._lock:
            hopeless = self._failed >= MAX_FAILED_STARTS and not self._living
        if last and hopeless:
            self._idle.put(last)

    def _on_start(self, started: Any) -> RayError | None:
        """Lend an actor that has started; return the error of one that has not, and ask for another."""
        with self._lock:
            actor = self._starting.pop(started)
        try:
            ray.get(started)
        except RayError as error:
            with self._lock:
                self._failed += 1
                again = self._failed < MAX_FAILED_STARTS
            if again:
                self._ask()
            return error
        with self._lock:
            self._failed, self._living = 0, self._living + 1
        self._idle.put(actor)
        return None

    def run(self, call: Callable[[Any], Any], given_up: Question, on_loss: Callable[[Exception], None]) -> Any:
        """Return the result of a call by whichever actor is free; one that is lost is replaced, and the call repeated.

        Parameters
        ----------
        call
            Starts the call on an actor, and returns Ray's reference to its result.
        given_up
            Returns True once nobody waits for the result any more; the actor that works at it is replaced then.
        on_loss
            Called with the error when an actor was lost and another one takes the call.

        Raises
        ------
        RayError
            As :meth:`take`, and when several actors were lost with this call.
        """
        losses = 0
        while True:
            actor = self.take(given_up)
            try:
                result = _result(call(actor), given_up)
            except GivenUp:
                self.replace(actor)
                raise
            except RayActorError as lost:
                self.replace(actor)
                losses += 1
                if losses == MAX_LOSSES:
                    raise
                on_loss(lost)
            except BaseException:
                self.give_back(actor)
                raise
            else:
                self.give_back(actor)
                return result

    def take(self, given_up: Question) -> Any:
        """Return an actor, once one is free.

        Raises
        ------
        RayError
            When none could be started, or nobody waits for one any more.
        """
        while True:
            try:
                found = self._idle.get(timeout=POLL_SECONDS)
                break
            except Empty:
                if given_up():
                    raise GivenUp from None
        if isinstance(found, Exception):
            self._idle.put(found)  # the next one has to know it as well
            raise found
        return found

    def give_back(self, actor: Any) -> None:
        """Make an actor available again."""
        self._idle.put(actor)

    def replace(self, actor: Any) -> None:
        """Ask for another actor in the place of one that was lost."""
        ray.kill(actor)
        with self._lock:
            self._living -= 1
        self._ask()

    def wait_for_one(self, address: str, given_up: Question) -> None:
        """Wait until one actor has started; note it if the cluster at an address has no room for that.

        Where there was room the actors have taken it, and only need their time to start; so do those of a private Ray,
        which has no address.

        Raises
        ------
        RayError
            When nobody waits for it any more.
        """
        end, told = time.monotonic() + PATIENCE, self._had_room or not address
        while self._idle.empty():
            if given_up():
                raise GivenUp
            if not told and time.monotonic() > end:
                told = True
                note(waiting_for(address, self.cpus, self.gpus))
            time.sleep(0.05)

    def close(self) -> None:
        """Stop watching; the actors end with the connection to the cluster."""
        with self._lock:
            self._closed = True
            self._asked.set()


def _result(reference: Any, given_up: Question) -> Any:
    """Return what a reference stands for, once it is there."""
    while not ray.wait([reference], num_returns=1, timeout=POLL_SECONDS)[0]:
        if given_up():
            raise GivenUp
    return ray.get(reference)


def has_room(cpus: float, gpus: float) -> bool:
    """Return True if so much is free on the cluster of which this process is a driver."""
    free = ray.available_resources()  # type: ignore[no-untyped-call]
    return bool(free.get("CPU", 0) >= cpus and free.get("GPU", 0) >= gpus)


def waiting_for(address: str, cpus: float, gpus: float) -> str:
    """Return the sentence about a run that waits for room on a cluster, of which this process is a driver.

    Parameters
    ----------
    cpus, gpus
        What a client needs.
    """
    free = ray.available_resources()  # type: ignore[no-untyped-call]
    return (
        f"waiting for the Ray cluster at {address}: a client needs {cpus:g} CPUs and {gpus:g} GPUs, and "
        f"{free.get('CPU', 0):g} and {free.get('GPU', 0):g} are free; the run begins when there is room"
    )


def another_takes_it(client: object, lost: Exception) -> str:
    """Return the sentence about a client whose actor was lost."""
    return f"the process of client {client} was lost ({type(lost).__name__}); another one takes its message"


def note(text: str) -> None:
    """Show a sentence in the log of this process, and in the run directory if there is one."""
    print(text, flush=True)
    if directory := os.environ.get(RUN_DIRECTORY):
        with suppress(OSError):
            RunDirectory(Path(directory)).emit("note", round=0, note=text)
