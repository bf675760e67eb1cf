"""A client that joins in the middle of a run: its first rounds, its initial head, and the same bits after a resume."""

from __future__ import annotations

import pytest

import fedlab
import toy
from fedlab.runs.directory import RunDirectory
from tables import put

LATE = {"blobs.domains": "near,far,late", "join_rounds": "late=3", "rounds": 6}


@pytest.fixture(autouse=True)
def _toy_workload(monkeypatch):
    put(monkeypatch, "workload", "blobs", toy.SPEC)


def run(tmp_path, **changes):
    return fedlab.run(toy.write_preset(tmp_path, **LATE, **changes), runs=tmp_path / "runs")


def test_a_late_joiner_sends_its_mixture_first_then_adapts_alone_then_all_go_on(tmp_path):
    result = run(tmp_path, **{"dualadapt.late_joiner_init": "nearest"})
    rounds = result.rounds
    trained = [{name for name, sent in record["bytes"].items() if sent["train_up"]} for record in rounds]
    known = {"near", "far"}
    assert trained == [set(), known, known, {"late"}, {"late"}, {"late"}, known | {"late"}]
    assert rounds[3]["bytes"]["late"]["train_up"] < rounds[4]["bytes"]["late"]["train_up"]  # a mixture and no head
    assert ["late" in record["clients"] for record in rounds] == [False, False, False, True, True, True, True]
    ((note),) = rounds[3]["notes"]
    assert note["client"] == "late"
    assert note["start"] == min(note["distances"], key=note["distances"].get) == "far"  # domains shift step by step
    assert [record["notes"] for record in rounds[:3] + rounds[4:]] == [[]] * 6
    assert rounds[3]["server"] == {}  # G stays as it is, so the mixtures can be compared


@pytest.mark.engine
@pytest.mark.parametrize("start", ["global", "random", "fresh", "balanced", "agreement"])
def test_a_late_joiner_may_start_elsewhere(tmp_path, start):
    other = run(tmp_path, **{"dualadapt.late_joiner_init": start})
    (note,), (first, later) = other.rounds[3]["notes"], (other.rounds[r]["bytes"]["late"]["train_up"] for r in (3, 4))
    assert (note["start"] in ("near", "far")) == (start == "random")
    own = start in ("balanced", "agreement")
    assert ("of its own choice" in note["note"]) == own
    assert (later - first < 100) == own  # it has sent its head as well, and only lacks three metrics
    assert len(other.rounds) == 7


def test_without_onboarding_a_late_joiner_joins_full_rounds_at_once(tmp_path):
    record = run(tmp_path, **{"dualadapt.onboarding": 0}).rounds[3]
    assert all(sent["train_up"] for sent in record["bytes"].values())
    assert record["notes"] == []


@pytest.mark.engine
def test_a_run_with_a_late_joiner_resumes_to_the_same_bits(tmp_path, monkeypatch):
    expected = run(tmp_path).weights_sha256
    log_round = RunDirectory.log_round
    for last in (2, 3):

        def stop(self, record, last=last):
            log_round(self, record)
            if record["round"] == last + 1:
                raise KeyboardInterrupt

        monkeypatch.setattr(RunDirectory, "log_round", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, name=f"stopped-{last}")
        monkeypatch.setattr(RunDirectory, "log_round", log_round)
        assert fedlab.resume(tmp_path / "runs" / f"stopped-{last}-0").weights_sha256 == expected
