"""Events read back with TensorBoard's own reader."""

from __future__ import annotations

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fedlab.trackers.tensorboard import TensorBoard
from fedlab.trackers.tracker import RunFacts, Scalars


def record(server_round, accuracy):
    moved = {"train_down": 10 * server_round, "train_up": server_round, "evaluate_down": 1, "evaluate_up": 1}
    return {
        "round": server_round,
        "clients": {"usps": {"accuracy": accuracy}, "svhn": {"accuracy": accuracy / 2}},
        "mean": {"accuracy": 0.75 * accuracy},
        "server": {"loss": 2.0},
        "score": {"inception_score": 3.0},
        "bytes": {"usps": moved, "svhn": moved},
        "seconds": {"clients": 0.5},
    }


class Board:
    """The tracker, told of whole records as a run tells it."""

    def __init__(self, path, after, clients=2):
        self.board = TensorBoard(RunFacts(path, "id", "fedlab", "", {}, after, clients))
        self.scalars = Scalars(clients)

    def add(self, record):
        self.board.add(record["round"], self.scalars(record))

    def close(self):
        self.board.close(failed=False)


def read(path):
    events = EventAccumulator(str(path / "tensorboard"))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_every_number_of_a_round_is_there_under_its_name_and_step(tmp_path):
    board = Board(tmp_path, after=-1)
    for server_round, accuracy in ((0, 0.25), (1, 0.5)):
        board.add(record(server_round, accuracy))
    board.close()
    assert read(tmp_path) == {
        "accuracy/usps": [(0, 0.25), (1, 0.5)],
        "accuracy/svhn": [(0, 0.125), (1, 0.25)],
        "mean/accuracy": [(0, 0.1875), (1, 0.375)],
        "server/loss": [(0, 2.0), (1, 2.0)],
        "score/inception_score": [(0, 3.0), (1, 3.0)],
        "seconds/clients": [(0, 0.5), (1, 0.5)],
        "bytes/train_down": [(0, 0.0), (1, 20.0)],
        "bytes/train_up": [(0, 0.0), (1, 2.0)],
    }


def test_a_round_is_on_the_disk_before_the_next_begins(tmp_path):
    board = Board(tmp_path, after=-1)
    board.add(record(0, 0.5))
    assert read(tmp_path)["accuracy/usps"] == [(0, 0.5)]
    board.close()


@pytest.mark.parametrize("after", [-1, 0, 1])
def test_what_a_killed_run_wrote_after_its_checkpoint_is_purged_on_resuming(tmp_path, after):
    killed = Board(tmp_path, after=-1)
    for server_round in (0, 1, 2):
        killed.add(record(server_round, 0.25))
    killed.close()
    (old,) = (tmp_path / "tensorboard").iterdir()
    old.rename(old.with_name(old.name.replace("tfevents.", "tfevents.0")))  # as if written a second earlier
    resumed = Board(tmp_path, after=after)
    for server_round in range(after + 1, 3):
        resumed.add(record(server_round, 0.75))
    resumed.close()
    expected = [(server_round, 0.25 if server_round <= after else 0.75) for server_round in (0, 1, 2)]
    assert read(tmp_path)["accuracy/usps"] == expected


def test_many_clients_have_quantiles_and_a_global_test_its_score(tmp_path):
    clients = {f"shard-{number}": {"accuracy": number / 100} for number in range(101)}
    board = Board(tmp_path, after=-1, clients=1000)
    board.add({**record(0, 0.5), "clients": clients, "score": {"accuracy": 0.75}, "bytes": {}})
    board.close()
    found = read(tmp_path)
    assert found["score/accuracy"] == [(0, 0.75)]
    assert found["accuracy/median"] == [(0, 0.5)] and found["accuracy/maximum"] == [(0, 1.0)]
    assert "accuracy/shard-7" not in found and len(found) < 20
