"""A client's own state: the newest of an earlier round, for as long as a checkpoint may need it."""

from __future__ import annotations

import random
import shutil

import pytest
import torch

import toy
from fedlab import registry
from fedlab.errors import RunError
from fedlab.launch import resume
from fedlab.runs.client_state import NO_STATE, ClientState, copy_states, state_at
from fedlab.runs.directory import RunDirectory, use_directory
from tables import lead, put


def save(state, *rounds):
    for number in rounds:
        state.save(number, {"arrays": {"weight": torch.full((2,), float(number))}, "alpha": number / 10})


def test_a_round_loads_the_newest_state_before_it(tmp_path):
    state = ClientState(tmp_path / "0")
    assert state.load(1) is None and not (tmp_path / "0").exists()
    save(state, 1, 3)
    assert [state.load(number)["alpha"] if state.load(number) else None for number in (1, 2, 3, 4, 9)] == [
        None, 0.1, 0.1, 0.3, 0.3,
    ]  # fmt: skip
    assert state.load(4)["arrays"]["weight"].tolist() == [3.0, 3.0]


def test_a_repeated_round_replaces_its_state_and_drops_what_came_after(tmp_path):
    state = ClientState(tmp_path)
    save(state, 1, 2, 3, 4)
    save(state, 2)
    assert state.rounds() == [1, 2]


@pytest.mark.parametrize(("keep", "every"), [(1, 1), (2, 1), (2, 3), (3, 10), (1, 7)])
def test_every_checkpoint_of_the_run_finds_its_state_and_no_file_is_kept_in_vain(tmp_path, keep, every):
    draw, taken, checkpoints = random.Random(keep + every), [], [0]

    def check(checkpoint):
        wanted = max((number for number in taken if number <= checkpoint), default=None)
        found = ClientState(tmp_path).load(checkpoint + 1)
        assert (found and round(found["alpha"] * 10)) == wanted

    for server_round in range(1, 60):
        if draw.random() < 0.5:
            taken.append(server_round)
            save(ClientState(tmp_path, checkpoints), server_round)
            assert len(ClientState(tmp_path).rounds()) <= len(checkpoints) + 1
        for checkpoint in (*checkpoints, server_round):  # a kill before this round's checkpoint, and a test after it
            check(checkpoint)
        if server_round % every == 0 or server_round == 25:  # a run of 25 rounds that goes on for longer
            checkpoints = [*checkpoints, server_round][-keep:]


def test_a_saved_tensor_does_not_bring_the_memory_that_it_is_a_part_of(tmp_path):
    state = ClientState(tmp_path)
    state.save(1, {"weight": torch.zeros(100_000)[:3]})
    assert (tmp_path / "1.pt").stat().st_size < 5_000


def test_a_damaged_state_is_named(tmp_path):
    (tmp_path / "2.pt").write_bytes(b"torn")
    with pytest.raises(RunError, match=r"state .*2\.pt cannot be read"):
        ClientState(tmp_path).load(3)


def test_a_simulated_clients_state_is_in_the_run_directory_by_partition(tmp_path):
    with use_directory(tmp_path):
        for partition in (0, 1):
            save(ClientState.of_client({"partition-id": partition}, "", partition, None), partition + 1)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.pt")) == [
        "client-state/0/1.pt",
        "client-state/1/2.pt",
    ]
    assert state_at(tmp_path / "checkpoints" / "round-1.pt", 0)["alpha"] == 0.1
    assert state_at(tmp_path / "checkpoints" / "round-1.pt", 1) is None


def test_a_deployed_clients_states_of_two_runs_are_apart(tmp_path):
    node = {"domain": "usps", "state-dir": str(tmp_path)}
    first, second = (ClientState.of_client(node, run, 0, None) for run in ("a", "../../b"))
    save(first, 1)
    save(second, 2)
    assert (first.rounds(), second.rounds()) == ([1], [2])
    assert all(path.parent.parent == tmp_path / "client-state" for path in tmp_path.rglob("*.pt"))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            ClientState.of_client({"domain": "usps"}, "a", 0, None),
            "no folder for it; start it with `fedlab join`",
        ),
        (ClientState.of_client({}, "a", 0, None), "have no run directory .*start it with `fedlab run`"),
        (NO_STATE, "set client_state=True in its StrategySpec"),
    ],
)
def test_without_a_folder_there_is_a_sentence(state, message):
    with pytest.raises(RunError, match=message):
        state.load(1)
    with pytest.raises(RunError, match=message):
        state.save(1, {})


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A run of Ditto in which the first client takes part in rounds 1 and 3 only, with every checkpoint."""
    put(monkeypatch, "workload", "blobs", toy.SPEC)
    schedule = tmp_path / "cohorts.txt"
    schedule.write_text("a,b,c\nb,c\na,b,c\nc\n")
    options = {
        **{key: value for key, value in toy.SMALL.items() if not key.startswith("dualadapt")},
        "strategy": "ditto",
        "blobs.domains": "a,b,c",
        "blobs.client_labels": True,
        "rounds": 4,
        "schedule": str(schedule),
    }

    def run(**changes):
        directory = RunDirectory.create(tmp_path / "runs", registry.load_config({**options, **changes}))
        lead(directory)
        return directory

    return run


def go_back(directory, server_round):
    """The run as a kill after this round's checkpoint would have left it, but for the clients' states."""
    for number in directory.checkpoints.rounds():
        if number > server_round:
            directory.checkpoints.path(number).unlink()
    directory.update_manifest(status="interrupted", weights_sha256=None)


@pytest.mark.parametrize(("every", "back"), [(1, 3), (1, 2), (2, 2)])
def test_a_resumed_run_goes_on_with_the_states_of_its_checkpoint(finished, every, back):
    directory = finished(**{"checkpoint.every": every, "checkpoint.keep": 3})
    whole, rounds = directory.manifest()["weights_sha256"], directory.rounds()
    shutil.copytree(directory.path / "client-state", directory.path / "before")
    go_back(directory, back)
    resume(directory.path)
    assert directory.manifest()["weights_sha256"] == whole
    assert [line["clients"] for line in directory.rounds()] == [line["clients"] for line in rounds]
    for path in (directory.path / "client-state").rglob("*.pt"):
        after, before = (torch.load(at) for at in (path, directory.path / "before" / path.parent.name / path.name))
        assert all(torch.equal(after["model"][name], before["model"][name]) for name in before["model"])


def test_a_run_whose_client_states_are_gone_is_not_resumed(finished):
    directory = finished()
    go_back(directory, 3)
    shutil.rmtree(directory.path / "client-state" / "0")
    (directory.path / "client-state" / "2" / "3.pt").unlink()
    with pytest.raises(RunError, match=r"cannot go on after round 3: the states that clients a, c had then are not in"):
        resume(directory.path)


def test_a_run_that_goes_on_for_longer_is_as_one_of_all_rounds(finished, tmp_path):
    whole, directory = finished(**{"checkpoint.every": 3}), finished(rounds=2, **{"checkpoint.every": 3})
    resume(directory.path, overrides={"rounds": 4})
    assert directory.manifest()["weights_sha256"] == whole.manifest()["weights_sha256"]
    assert [line["clients"] for line in directory.rounds()] == [line["clients"] for line in whole.rounds()]


def test_a_state_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"the client's state cannot be saved: .*file"):
        save(ClientState(tmp_path / "file" / "0"), 1)


def test_two_runs_have_two_identifiers(tmp_path):
    config = registry.load_config({"name": "x"})
    found = {RunDirectory.create(tmp_path, config).manifest()["id"] for _ in range(2)}
    assert len(found) == 2 and all(len(one) == 16 for one in found)


def test_a_run_that_goes_on_from_another_ones_checkpoint_takes_its_states_along(finished, tmp_path):
    directory = finished()
    copy_states(directory.path, tmp_path / "other", 3)
    found = sorted(str(path.relative_to(tmp_path / "other")) for path in (tmp_path / "other").rglob("*.pt"))
    assert found == ["client-state/0/3.pt", "client-state/1/3.pt", "client-state/2/3.pt"]
