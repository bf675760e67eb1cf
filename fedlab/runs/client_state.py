"""State that belongs to a client and never crosses the wire: one file for each round in which the client trained.

::

    runs/<name>-<seed>/client-state/<partition>/<round>.pt    where clients are simulated: in the run directory
    clients/usps/client-state/<run>/<round>.pt                of a deployed client: in its state directory

In round r a client loads its newest file of a round before r, so a resumed run goes on from the state that belongs to
its checkpoint, and a round that is repeated gives the same bits. Files live as long as a checkpoint of the run may
need them, see :meth:`ClientState.save`. The server keeps and sends nothing.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedlab.errors import RunError, name_list, os_error_sentence
from fedlab.files import write_atomically
from fedlab.runs.client_store import STATE_DIR_KEY
from fedlab.runs.directory import current_directory
from fedlab.tensor_files import UnreadableFileError, read_tensors

FOLDER = "client-state"
DOMAIN_KEY = "domain"  # in the config of a deployed node
CLIENT = "client"  # entry of a checkpoint that a client predicts with: its own state

State = dict[str, Any]

UNDECLARED = (
    "a client's state is used by a strategy that does not declare it; set client_state=True in its StrategySpec"
)
NO_STATE_DIR = (
    "this strategy keeps a state on the client, and this client has no folder for it; start it with `fedlab join`, or "
    f"with {STATE_DIR_KEY} in its node config"
)
NO_DIRECTORY = (
    "this strategy keeps a state on the client, and clients of this run have no run directory to keep it in (a Ray "
    "cluster of others, or an app that Flower started itself); start it with `fedlab run` without ray.address, or give "
    f"each node {STATE_DIR_KEY} in its config"
)


class ClientState:
    """States of one client by round, in a folder of its own.

    Parameters
    ----------
    folder
        The folder, made with the first state; None: there is none, and :meth:`load` and :meth:`save` say why.
    checkpoints
        Rounds of the checkpoints that the run has now; None: not known, so any round may have one.
    reason
        Why there is no folder: a sentence.
    """

    def __init__(self, folder: Path | None, checkpoints: Sequence[int] | None = None, reason: str = UNDECLARED) -> None:
        self.folder, self.checkpoints, self.reason = folder, checkpoints, reason

    @classmethod
    def of_client(
        cls, node_config: Mapping[str, Any], run: str, partition: int, checkpoints: Sequence[int] | None
    ) -> ClientState:
        """Return the state of a client, whether it is simulated or deployed.

        Parameters
        ----------
        node_config
            Flower's node config of the client.
        run
            Identifier of the run, as the server sent it: a client's folder may have states of several runs.
        partition
            The client's partition.
        checkpoints
            Rounds of the checkpoints that the run has now, if the server sent them.
        """
        if state_dir := str(node_config.get(STATE_DIR_KEY, "")):
            name = hashlib.sha256(run.encode()).hexdigest()[:16]  # text of another machine is no folder's name
            return cls(Path(state_dir) / FOLDER / name, checkpoints)
        if DOMAIN_KEY in node_config:
            return cls(None, checkpoints, NO_STATE_DIR)
        directory = current_directory()
        if directory is None:
            return cls(None, checkpoints, NO_DIRECTORY)
        return cls(_folder(directory, partition), checkpoints)

    def rounds(self) -> list[int]:
        """Return the rounds that have a file, ascending.

        Raises
        ------
        RunError
            When the client has no folder.
        """
        return sorted(int(path.stem) for path in self._folder().glob("*.pt") if path.stem.isdecimal())

    def load(self, before: int) -> State | None:
        """Return the newest state of a round before ``before``, tensors on the CPU; None when the client has none yet.

        No code in the file is run.

        Raises
        ------
        RunError
            When the client has no folder, or the file is damaged.
        """
        rounds = [number for number in self.rounds() if number < before]
        if not rounds:
            return None
        path = self._path(rounds[-1])
        try:
            return dict(read_tensors(path))
        except (UnreadableFileError, TypeError, ValueError) as error:
            raise RunError(
                f"the client's state {path} cannot be read ({error}); put it back, or start the run anew"
            ) from None

    def save(self, server_round: int, state: Mapping[str, Any]) -> None:
        """Write the state after a round in which the client trained; delete the files that nothing needs any more.

        Needed are this one, and for each checkpoint that the run has now the newest state up to it: one file more than
        checkpoints at most, whatever the number of rounds between them. Files of later rounds are what a stopped run
        left behind.

        Parameters
        ----------
        state
            Tensors on any device, and mappings of tensors, by name; plain numbers and text too.

        Raises
        ------
        RunError
            When the client has no folder, or the file cannot be written.
        """
        stream = io.BytesIO()
        torch.save(_snapshot(state), stream)
        try:
            write_atomically(self._path(server_round), stream.getvalue())
        except OSError as error:
            raise RunError(f"the client's state cannot be saved: {os_error_sentence(error)}") from error
        rounds = self.rounds()
        for number in set(rounds) - self._needed(rounds, server_round):
            self._path(number).unlink()

    def _needed(self, rounds: Sequence[int], server_round: int) -> set[int]:
        """Return the rounds whose files are needed once a client has trained in a round."""
        if self.checkpoints is None:
            return {number for number in rounds if number <= server_round}
        found = ([number for number in rounds if number <= checkpoint] for checkpoint in self.checkpoints)
        return {server_round, *(candidates[-1] for candidates in found if candidates)}

    def _path(self, server_round: int) -> Path:
        return self._folder() / f"{server_round}.pt"

    def _folder(self) -> Path:
        if self.folder is None:
            raise RunError(self.reason)
        return self.folder


NO_STATE = ClientState(None)


def state_at(checkpoint: Path, partition: int) -> State | None:
    """Return a simulated client's state at a checkpoint of its run; None where it has none on this machine.

    Parameters
    ----------
    checkpoint
        Path of the file, ``<run directory>/checkpoints/round-N.pt``.
    """
    server_round = int(checkpoint.stem.rpartition("-")[2])
    return ClientState(_folder(checkpoint.parent.parent, partition)).load(server_round + 1)


def copy_states(source: Path, run: Path, server_round: int) -> None:
    """Copy the states that clients had after a round from another run directory, for a run that goes on from there."""
    for folder in sorted((source / FOLDER).glob("*")):
        rounds = [number for number in ClientState(folder).rounds() if number <= server_round]
        if rounds:
            path = Path(FOLDER) / folder.name / f"{rounds[-1]}.pt"
            write_atomically(run / path, (source / path).read_bytes())


def check_states(run: Path, records: Sequence[Mapping[str, Any]], server_round: int, names: Mapping[int, str]) -> None:
    """Check that simulated clients have the states with which a run goes on after a checkpoint.

    Parameters
    ----------
    run
        The run directory.
    records
        Its rounds, as in ``metrics.jsonl``.
    server_round
        Round of the checkpoint.
    names
        Names of the clients by partition.

    Raises
    ------
    RunError
        When a client trained up to that round, and its state after that is not there.
    """
    trained = {name: record["round"] for record in records[: server_round + 1] for name in _trained(record)}
    missing = []
    for partition, name in names.items():
        found = [number for number in ClientState(_folder(run, partition)).rounds() if number <= server_round]
        if max(found, default=0) < trained.get(name, 0):
            missing.append(name)
    if missing:
        raise RunError(
            f"the run cannot go on after round {server_round}: the states that clients {name_list(missing)} had then "
            f"are not in {run / FOLDER}; put the folder back, or start anew: fedlab run {run}/config.toml"
        )


def _trained(record: Mapping[str, Any]) -> list[str]:
    """Return the clients whose training in a round was used."""
    failed = {failure["client"] for failure in record["failures"] if failure["phase"] == "clients"}
    return [name for name, sizes in record["bytes"].items() if sizes["train_up"] and name not in failed]


def _folder(run: Path, partition: int) -> Path:
    return run / FOLDER / str(partition)


def _snapshot(value: Any) -> Any:
    """Return nested mappings of tensors as dicts of tensors on the CPU, each with memory of its own.

    torch saves the whole memory that a tensor is a part of.
    """
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    return {name: _snapshot(item) for name, item in value.items()} if isinstance(value, Mapping) else value
