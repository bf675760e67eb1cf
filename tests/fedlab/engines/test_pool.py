"""Worker processes: the replies of one process, workers that die, clients that fail, and nothing left over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from flwr.app import ConfigRecord, Message, MessageType, RecordDict

import pool_apps
from fedlab.comm.replies import reply_batches
from fedlab.comm.tensors import tensor_record, tensors_of
from fedlab.engines.client_host import ClientHost, node_partitions
from fedlab.engines.flower_internals import task_identity
from fedlab.engines.inprocess import InProcessGrid
from fedlab.engines.pool import PoolGrid
from fedlab.engines.pool_worker import Setup
from fedlab.errors import RunError
from fedlab.launch import prepare, run_engine
from fedlab.runs.directory import RunDirectory
from waiting import wait_until

pytestmark = pytest.mark.engine
W = torch.arange(5000.0)


def messages(grid, own=(), **config):
    """A training message for each client, all of one record of arrays; of ``own`` clients with arrays of their own."""
    shared = {"arrays": tensor_record({"w": W}), "config": ConfigRecord(config)}
    made = []
    for node in grid.get_node_ids():
        more = {"own": tensor_record({"v": torch.full((3,), float(node))})} if node in own else {}
        made.append(Message(RecordDict({**shared, **more}), dst_node_id=node, message_type=MessageType.TRAIN))
    return made


def setup(clients):
    return Setup("pool_apps:app", {}, node_partitions(clients), 1, 1, vectorize=0)


@pytest.fixture
def pooled(tmp_path):
    """Function of the number of clients and of workers: a running pool."""
    opened = []

    def start(clients=6, workers=2):
        identity, grid = task_identity(1, 1), PoolGrid(setup(clients), workers)
        running = grid.running(tmp_path / "workers.log")
        for context in (identity, running):
            context.__enter__()
            opened.append(context)
        return grid

    yield start
    for context in reversed(opened):
        context.__exit__(None, None, None)


def outcome(replies):
    """Partition to what its client answered, or to why it did not."""
    found = {}
    for reply in replies:
        if reply.has_error():
            found[reply.metadata.src_node_id] = reply.error.reason
        else:
            found[reply.metadata.src_node_id] = tensors_of(reply.content["arrays"])["w"].tolist()
    return found


def test_replies_are_those_of_one_process(pooled):
    grid = pooled()
    own = grid.get_node_ids()[1:4]
    got = grid.send_and_receive(messages(grid, own=own))
    with task_identity(1, 1):
        here = InProcessGrid(ClientHost(pool_apps.app, {}, node_partitions(6)))
        wanted = here.send_and_receive(messages(here, own=own))
    assert outcome(got) == outcome(wanted)
    returned = {one.metadata.src_node_id: one.content["own"] for one in got if "own" in one.content}
    assert {node: tensors_of(record)["v"].tolist() for node, record in returned.items()} == {
        node: [float(node)] * 3 for node in own
    }
    workers = {one.content["metrics"]["pid"] for one in got}
    assert len(workers) == 2 and os.getpid() not in workers


def test_a_clients_state_goes_with_it_to_any_worker(pooled):
    grid = pooled(workers=2)
    for expected in (1, 2, 3):
        replies = grid.send_and_receive(messages(grid))
        assert {reply.content["metrics"]["calls"] for reply in replies} == {expected}


def test_memory_of_a_round_is_given_back(pooled):
    grid = pooled(workers=1)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        grid.send_and_receive(messages(grid))
    assert not grid.shared
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # the worker's socket


def test_a_client_that_fails_is_named_and_the_others_answer(pooled):
    grid = pooled()
    replies = grid.send_and_receive(messages(grid, fails=2))
    (failed,) = [reply for reply in replies if reply.has_error()]
    assert grid.partitions[failed.metadata.src_node_id] == 2
    assert "ValueError: no such lesion" in failed.error.reason
    assert len(replies) == 6


def test_a_deadline_ends_the_work_of_a_client_and_the_others_are_used(pooled):
    grid = pooled(workers=2)
    grid.send_and_receive(messages(grid))  # the workers are up
    batches = reply_batches(grid, messages(grid, seconds=60.0, slow=1), 600, round_timeout=5.0)
    found = [one for batch in batches for one in batch]
    assert [grid.partitions[sent.metadata.dst_node_id] for sent, reply in found if reply is None] == [1]
    assert not grid._messages and not grid._waiting and not grid.shared
    assert len(grid.send_and_receive(messages(grid))) == 6  # by another worker, at once


def test_a_worker_that_dies_once_is_replaced_and_its_clients_are_repeated(pooled, tmp_path):
    grid = pooled()
    replies = grid.send_and_receive(messages(grid, dies=3, once=str(tmp_path / "died")))
    assert (tmp_path / "died").exists()
    assert len(replies) == 6 and not any(reply.has_error() for reply in replies)


def test_a_client_that_kills_every_worker_fails_and_the_others_answer(pooled):
    grid = pooled()
    replies = grid.send_and_receive(messages(grid, dies=3))
    reasons = {grid.partitions[one.metadata.src_node_id]: one.error.reason for one in replies if one.has_error()}
    assert reasons.keys() == {3} and "killed 2 times" in reasons[3] and "memory" in reasons[3]
    assert len(replies) == 6


def test_a_client_that_changes_what_was_sent_ends_the_run(pooled):
    grid = pooled()
    with pytest.raises(RunError, match=r"partition 4 changed the arrays .*arrays/w.*clone"):
        grid.send_and_receive(messages(grid, changes=4))


def alive(folder):
    """Processes whose environment names the folder."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            if int(entry) != os.getpid() and str(folder).encode() in Path(f"/proc/{entry}/environ").read_bytes():
                found.append(int(entry))
    return found


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["interrupted", "killed"])
def test_nothing_is_left_however_the_run_ends(tmp_path, how):
    script = tmp_path / "script.py"
    script.write_text(
        "import signal, sys; sys.path[:0] = [sys.argv[1]]\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which a shell's background jobs ignore
        "from pathlib import Path\n"
        "from test_pool import *\n"
        "with task_identity(1, 1):\n"
        "    grid = PoolGrid(setup(4), 2)\n"
        "    with grid.running(Path(sys.argv[2]) / 'workers.log'):\n"
        "        Path(sys.argv[2], 'up').touch()\n"
        "        grid.send_and_receive(messages(grid, seconds=60.0))\n"
    )
    folders = [os.path.dirname(__file__), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders)), "MARKED": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, str(script), folders[0], str(tmp_path)], env=environment, stderr=subprocess.DEVNULL
    )
    wait_until((tmp_path / "up").exists, 60)
    wait_until(lambda: len(alive(tmp_path)) >= 4, 60)  # itself, the one that forks, two workers
    time.sleep(0.2)
    process.send_signal(how)
    assert process.wait(30) != 0
    wait_until(lambda: not alive(tmp_path), 30)


def federation(tmp_path, engine, **options):
    config = prepare(
        "fedavg-digits",
        {"rounds": 2, "client.steps": 2, "data.num_clients": 10, "threads": 1, "fraction_train": 0.6}
        | {"fraction_evaluate": 0.3, "data.max_examples": 400, "engine": engine, **options},
    )
    return run_engine(RunDirectory.create(tmp_path / engine, config))


def test_a_run_has_the_bits_of_one_process_and_is_the_default_with_many_clients(tmp_path):
    here, there = federation(tmp_path, "inprocess"), federation(tmp_path, "pool", **{"pool.workers": 3})
    assert here.weights_sha256 == there.weights_sha256
    facts = ("clients", "mean", "bytes")
    assert [{key: line[key] for key in facts} for line in here.rounds] == [
        {key: line[key] for key in facts} for line in there.rounds
    ]
    default = federation(tmp_path, "local", fraction_train=1.0)
    assert default.manifest["engine"] == "local"
    assert default.manifest["engine_chosen"] == ("pool" if len(os.sched_getaffinity(0)) > 1 else "inprocess")
