"""Runs that are carried to another machine in pieces, and go on there."""

from __future__ import annotations

import shutil

import pytest
import torch

import fedlab
from benchmarks.gpu import carry
from benchmarks.gpu.tiny import TINY_DATA
from fedlab.errors import RunError
from fedlab.runs.checkpoints import Checkpoints

OPTIONS = {
    **TINY_DATA["digits"],
    "workload": "digits",
    "strategy": "source_only",
    "server.pretrain_steps": 0,
    "server.steps": 3,
    "server.batch_size": 8,
    "server.ema_decay": 0.9,
    "engine": "inprocess",
    "device": "cpu",
    "report": False,
    "seed": 0,
}


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    return fedlab.run(runs=tmp_path_factory.mktemp("half"), overrides={**OPTIONS, "rounds": 2}).directory


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return fedlab.run(runs=tmp_path_factory.mktemp("whole"), overrides={**OPTIONS, "rounds": 4})


def carried(run, tmp_path, **options):
    carry.pack(run, tmp_path / "pieces", **options)
    ((name, content),) = carry.runs_of([tmp_path / "pieces"])
    return carry.unpack(name, content, tmp_path / "elsewhere/runs")


def test_a_carried_run_goes_on_to_the_bits_of_one_without_a_break(half, whole, tmp_path):
    result = fedlab.resume(carried(half, tmp_path), rounds=4)
    assert result.manifest["weights_sha256"] == whole.manifest["weights_sha256"]
    assert [line["round"] for line in result.rounds] == [0, 1, 2, 3, 4]


def test_a_light_copy_goes_on_nearly_the_same_from_a_fraction_of_the_size(half, whole, tmp_path):
    full, light = (
        sum(piece.stat().st_size for piece in carry.pack(half, tmp_path / str(kept), light=kept))
        for kept in (False, True)
    )
    assert light < 0.6 * full
    result = fedlab.resume(carried(half, tmp_path, light=True), rounds=4)
    ours, theirs = (Checkpoints(run.directory).load(4)["strategy"]["model"] for run in (result, whole))
    trained = [name for name in ours if name.endswith(("weight", "bias"))]
    rate, steps = result.config["server.learning_rate"], 6
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in trained) < rate * steps
    assert result.manifest["weights_sha256"] != whole.manifest["weights_sha256"]


def test_packing_leaves_a_run_as_it_was(half, tmp_path):
    before = {path: path.read_bytes() for path in half.rglob("*") if path.is_file()}
    carry.pack(half, tmp_path, light=True)
    assert {path: path.read_bytes() for path in half.rglob("*") if path.is_file()} == before


def test_pieces_may_lie_in_several_folders_and_none_may_be_missing(half, tmp_path):
    pieces = carry.pack(half, tmp_path / "one", piece_mb=0.03)
    assert len(pieces) > 100 and all(piece.stat().st_size <= 30_000 for piece in pieces)
    (tmp_path / "two").mkdir()
    moved = shutil.move(pieces[1], tmp_path / "two")
    ((name, content),) = carry.runs_of([tmp_path / "one", tmp_path / "two"])
    assert carry.unpack(name, content, tmp_path / "runs") == tmp_path / "runs" / half.name
    with pytest.raises(RunError, match="is there already"):
        carry.unpack(name, content, tmp_path / "runs")
    shutil.move(moved, tmp_path / "away")
    ((name, content),) = carry.runs_of([tmp_path / "one", tmp_path / "two"])
    with pytest.raises(RunError, match="is one missing"):
        carry.unpack(name, content, tmp_path / "other")
    assert not list((tmp_path / "other").iterdir())


def test_fewer_pieces_than_before_leave_no_old_one(half, tmp_path):
    carry.pack(half, tmp_path, piece_mb=0.03)
    pieces = carry.pack(half, tmp_path)
    assert sorted(tmp_path.iterdir()) == pieces and len(pieces) == 1


def test_a_folder_that_is_no_run_and_one_without_a_checkpoint_are_named(half, tmp_path):
    with pytest.raises(RunError, match="is no run folder"):
        carry.pack(tmp_path, tmp_path / "out")
    shutil.copytree(half, tmp_path / "run", ignore=shutil.ignore_patterns("*.pt"))
    with pytest.raises(RunError, match="no checkpoint, so there is nothing to go on from"):
        carry.pack(tmp_path / "run", tmp_path / "out")


def test_rounding_keeps_what_it_cannot_round():
    numbers = torch.tensor([1.3, -0.1, 0.0, torch.finfo(torch.float32).max])
    assert carry.rounded(numbers, 2).tolist() == [1.25, -0.09375, 0.0, numbers[3].item()]
    endless = torch.tensor([1.3, float("inf")])
    assert carry.rounded(endless, 2) is endless
    assert carry.rounded(numbers.double(), 2).tolist() == numbers.double().tolist()


def test_the_command_packs_and_unpacks_and_says_what_it_could_not(half, tmp_path, monkeypatch, capsys):
    def command(*arguments):
        monkeypatch.setattr("sys.argv", ["carry", *map(str, arguments)])
        return carry.main(), capsys.readouterr()

    status, said = command(tmp_path, half, "--out", tmp_path / "pieces")
    assert status == 1 and "is no run folder" in said.err and f"{half.name}.tar.xz.00  " in said.out
    status, said = command("--unpack", tmp_path / "pieces", "--runs", tmp_path / "runs")
    assert status == 0 and said.out.strip() == str(tmp_path / "runs" / half.name)
    status, said = command("--unpack", tmp_path / "runs")
    assert status == 1 and "no pieces" in said.err
    with pytest.raises(SystemExit):
        command()
