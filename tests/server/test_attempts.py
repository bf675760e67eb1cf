"""A phase that too few real clients answer is repeated, so often, and costs privacy each time."""

from __future__ import annotations

from dataclasses import replace

import pytest

import fedlab
import toy
from fedlab import engines, registry
from fedlab.errors import ConfigError, RunError
from fedlab.strategies.protocol import round_of
from tables import put

REAL = {"engine": "real", "strategy": "fedavg", "blobs.client_labels": True, "rounds": 2}


def never(phase, number, partition):
    return False


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A federation whose clients are of this process and count as real; they fail where ``fails`` returns True."""
    put(monkeypatch, "workload", "blobs", toy.SPEC)
    put(monkeypatch, "engine", "real", replace(engines.INPROCESS, simulates_clients=False))

    def start(name, fails=never, **changes):
        options = {**REAL, **changes}
        spec = registry.find("strategy", options["strategy"]).spec

        def flaky(phase):
            def answer(workload, message, context):
                if fails(phase, round_of(message), context.partition):
                    raise OSError("the network is gone")
                return getattr(spec.client, phase)(workload, message, context)

            return answer

        client = replace(spec.client, train=flaky("train"), evaluate=flaky("evaluate"))
        with monkeypatch.context() as until_it_ends:
            put(until_it_ends, "strategy", options["strategy"], replace(spec, client=client))
            return fedlab.run(toy.write_preset(tmp_path), runs=tmp_path, name=name, **options)

    return start


def failing(*phases):
    """Fail in these phases, rounds and partitions, each once."""
    left = list(phases)

    def fails(*phase):
        if phase in left:
            left.remove(phase)
            return True
        return False

    return fails


def test_traffic_of_attempts_that_failed_is_counted(run):
    """It has crossed the wire, and a budget of bytes is of what has."""
    lost = failing(("train", 1, 0), ("train", 1, 1), ("train", 1, 1), ("evaluate", 1, 0))
    found, whole = (one.rounds[1]["bytes"] for one in (run("lost", lost), run("whole")))
    near, far = whole
    assert [found[name]["train_down"] for name in whole] == [3 * whole[name]["train_down"] for name in whole]
    assert found[near]["train_up"] > whole[near]["train_up"]  # it answered twice
    assert found[far]["train_up"] == whole[far]["train_up"]  # and it failed twice
    assert [found[name]["evaluate_down"] for name in whole] == [2 * whole[name]["evaluate_down"] for name in whole]
    assert found[far]["evaluate_up"] > whole[far]["evaluate_up"]


def test_a_run_whose_clients_were_away_has_the_bits_of_one_whose_clients_were_not(run):
    lost = failing(("train", 1, 0), ("train", 1, 1), ("train", 1, 1), ("evaluate", 1, 0), ("evaluate", 0, 1))
    found, expected = run("lost", lost), run("whole")
    assert found.weights_sha256 == expected.weights_sha256
    assert found.final() == expected.final()
    first, second = [[note["note"] for note in record["notes"]] for record in found.rounds[:2]]
    assert first == ["1 of 2 clients failed: partition 1 (far) (failed); the phase is repeated (attempt 2 of 3)"]
    assert [note.partition(":")[0] for note in second] == [
        "all clients failed",
        "1 of 2 clients failed",
        "1 of 2 clients failed",
    ]
    assert "(attempt 3 of 3)" in second[1] and "(attempt 2 of 3)" in second[2]  # each phase has its own
    assert [record["failures"] for record in found.rounds] == [[], [], []]


@pytest.mark.parametrize("attempts", [1, 2])
def test_one_lost_attempt_too_many_ends_the_run_and_it_is_resumed(run, tmp_path, attempts):
    lost = failing(*[("train", 2, 0)] * attempts)
    with pytest.raises(RunError, match=r"1 of 2 clients failed: partition 0 \(near\); the run needs 2 valid replies"):
        run("lost", lost, **{"comm.attempts": attempts})
    assert fedlab.resume(tmp_path / "lost-0").weights_sha256 == run("whole").weights_sha256


def test_the_last_test_is_repeated_only_while_nobody_has_answered_and_left(run):
    assert run("nobody", failing(("evaluate", 2, 0), ("evaluate", 2, 1))).final().keys() == {"near", "far"}
    with pytest.raises(RunError, match=r"1 of 2 clients failed: partition 1 \(far\)"):
        run("one", failing(("evaluate", 2, 1)))


def test_other_clients_are_drawn_for_another_attempt(run):
    sampled = {"fraction_train": 0.25, "blobs.domains": "a,b,c,d", "rounds": 1}
    whole = run("whole", **sampled).rounds[1]["bytes"]
    (drawn,) = [client for client, sent in whole.items() if sent["train_down"]]
    found = run("lost", lambda phase, number, partition: phase == "train" and "abcd"[partition] == drawn, **sampled)
    assert found.rounds[1]["notes"]
    assert [client for client, sent in found.rounds[1]["bytes"].items() if sent["train_down"]] != [drawn]


def test_what_a_lost_attempt_released_is_paid_for(run):
    private = {"strategy": "dualadapt", "dualadapt.local_privacy": "moments", "dualadapt.noise_multiplier": 20.0}
    (_, epsilon, _) = [record["privacy"]["epsilon"] for record in run("whole", **private).rounds]
    found = run("lost", failing(("train", 1, 1)), **private, **{"dp.max_epsilon": 1.6 * epsilon})
    assert [record["privacy"]["releases"] for record in found.rounds] == [0, 2]
    assert found.manifest["ended_by"] == "epsilon"
    with pytest.raises(RunError, match="1 of 2 clients failed"):  # no budget for another attempt
        run("spent", failing(("train", 1, 1)), **private, **{"dp.max_epsilon": epsilon})


def test_simulated_clients_are_asked_once(run):
    with pytest.raises(RunError, match="1 of 2 clients failed"):
        run("lost", failing(("train", 1, 0)), engine="inprocess")
    with pytest.raises(ConfigError, match=r"'comm.attempts' has no effect in this run: simulated clients"):
        run("set", engine="inprocess", **{"comm.attempts": 2})
